"""`KVStore`: where an engine keeps what attention layers need of earlier tokens."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from reallm.generation.step import Placement, Row, ScheduledSequence, Step
from reallm.model.attention.exact import CHUNK
from reallm.model.attention.kv_cache import ForwardCache


class KVStore(Protocol):
    """Keys, values and states of the sequences of an engine, at the places that its scheduler gives them."""

    @property
    def page_size(self) -> int | None:
        """Number of tokens of a page, in which sequences are placed; None: they are placed in rows."""

    @property
    def can_share_prefixes(self) -> bool:
        """Whether the first tokens of a cached sequence serve others too: not if a layer keeps one state for them."""

    @property
    def bytes_held(self) -> int:
        """Number of bytes of all tensors."""

    def prepare(self, step: Step, *, exact: bool = False) -> ForwardCache:
        """Allocate, copy and free as a step says; returns the cache of its forward pass.

        Args:
            step: a step whose sequences are in `pack_order`.
            exact: whether attention gives the same bits whatever else the pass computes; see `model.exact`.
        """

    def erase(self, placement: Placement) -> None:
        """Write zeros to a place that has held numbers that are not finite, before it is given to another sequence."""

    def close(self) -> None:
        """Free all tensors; the next step starts from nothing."""


class Kind(IntEnum):
    """What a step does with a sequence, which decides how its attention is computed."""

    START = 0
    """Its first tokens are computed."""
    CONTINUE = 1
    """Several tokens are computed that follow cached ones."""
    DECODE = 2
    """One token is computed that follows cached ones."""

    @classmethod
    def of(cls, sequence: ScheduledSequence) -> Kind:
        """The kind of a sequence of a step."""
        if sequence.n_cached == 0:
            return cls.START
        return cls.CONTINUE if sequence.n_new > 1 else cls.DECODE


def pack_order(sequence: ScheduledSequence, *, exact: bool = False) -> tuple[int, ...]:
    """Sort key that orders the sequences of a forward pass by kind, and by row: those that are computed together.

    Exact attention computes only sequences together that decode in the same chunk of positions.
    """
    kind, place = Kind.of(sequence), sequence.placement
    if not isinstance(place, Row):
        return (kind,)
    chunk = sequence.n_cached // CHUNK if exact and kind is Kind.DECODE else 0
    return kind, place.capacity, chunk, place.index
