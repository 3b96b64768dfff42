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

    Nothing is computed or copied by it: it plans. All copies that it plans are made in order, before the next pass.
    """

    n_tokens: int
    """Number of tokens that the cache has room for."""

    @property
    def n_free_tokens(self) -> int:
        """Number of tokens that no running sequence has room for; what finished ones have left counts as free."""

    @property
    def longest_sequence(self) -> int:
        """Number of tokens of the longest sequence that fits when nothing else is there."""

    @property
    def n_rows(self) -> Mapping[int, int]:
        """See `Step.n_rows`."""

    def waits(self, sequence: SequenceState) -> bool:
        """Whether a running sequence is about to compute tokens that this one begins with."""

    def allocate(self, sequence: SequenceState) -> Allocation | None:
        """Room for all tokens of a sequence, of which it may find the first in the cache; None: there is none now."""

    def grow(self, sequence: SequenceState, n_tokens: int) -> list[CacheCopy] | None:
        """Room for the first `n_tokens` of a sequence that has some; None: there is none now, and nothing changes."""

    def placement(self, sequence: SequenceState) -> Placement:
        """Where a sequence has its room."""

    def computed(self, sequence: SequenceState) -> None:
        """Note that the first `sequence.n_cached` tokens are in the cache, for others to use."""

    def release(self, sequence: SequenceState) -> None:
        """Take back the room of a sequence, and let nobody use what is in it."""

    def finish(self, sequence: SequenceState, *, has_children: bool = False) -> None:
        """Take back the room of a sequence that has ended; others can use what is in it until the room is needed.

        Args:
            sequence: the sequence.
            has_children: whether a waiting sequence has this one as its parent.
        """

    def forget(self) -> None:
        """Let no sequence use what was computed before, because the weights have changed."""
