"""`CacheManager`: what the scheduler asks of a manager of the cache's room, be it rows or pages. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Placement


class Allocation(NamedTuple):
    """Room that a sequence was given."""

    n_cached: int
    """Number of its first tokens that are in it already, once the copies are made."""
    copies: list[CacheCopy]


class CacheManager(Protocol):
    """Gives sequences room in a cache of a fixed number of tokens, and finds prompts that it holds already.

    It computes and copies nothing, it plans. All copies that it plans are made in order, before the next pass.
    """

    n_tokens: int
    """Number of tokens for which there is room."""

    @property
    def n_free_tokens(self) -> int:
        """Number of tokens for which there is room besides that of running sequences."""

    @property
    def longest_sequence(self) -> int:
        """Number of tokens of the longest sequence that fits when it is alone."""

    @property
    def n_rows(self) -> Mapping[int, int]:
        """See `Step.n_rows`."""

    def waits(self, sequence: SequenceState) -> bool:
        """Whether a running sequence is about to compute tokens with which this one begins."""

    def allocate(self, sequence: SequenceState) -> Allocation | None:
        """Room for all tokens of a sequence, of which the first may be in the cache; None: there is no room now."""

    def grow(self, sequence: SequenceState) -> list[CacheCopy] | None:
        """Room for all tokens of a sequence that has room for the first of them; None: there is no room now."""

    def placement(self, sequence: SequenceState) -> Placement:
        """Where a sequence has its room."""

    def computed(self, sequence: SequenceState) -> None:
        """Note that the first `sequence.n_cached` tokens are in the cache, for others to use."""

    def suspend(self, sequence: SequenceState) -> None:
        """Take back the room of a sequence that will ask for it again."""

    def finish(self, sequence: SequenceState) -> None:
        """Take back the room of a sequence that has ended; until it is needed, others can use what is in it."""

    def discard(self, sequence: SequenceState) -> Placement:
        """Take back the room of a sequence whose tokens nobody may use; returns it, without what others have too."""

    def close_gaps(self) -> list[CacheCopy]:
        """Move running sequences to where they are read together; returns the moves."""

    def forget(self) -> None:
        """Let nobody use what was computed before; no sequence has room."""
