"""Sets of ranks as integers, bit r for rank r, and the segments of ranks that are alike in a plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

RankSet = int
"""A set of ranks: bit r is set if rank r belongs to it."""


def rank_set(ranks: Iterable[int]) -> RankSet:
    """The set of these ranks."""
    found = 0
    for rank in ranks:
        found |= 1 << rank
    return found


def ranks_in(members: RankSet) -> Iterator[int]:
    """The ranks of a set, in ascending order."""
    while members:
        lowest = members & -members
        yield lowest.bit_length() - 1
        members ^= lowest


class Segments:
    """The coarsest partition of ranks such that each of some sets is a union of its parts.

    Ranks of a segment take part in the same calls, so that one clock tells the time of all of them.

    Args:
        sets: the sets of ranks.
    """

    def __init__(self, sets: Sequence[RankSet]) -> None:
        parts: list[RankSet] = []
        for one in dict.fromkeys(sets):
            rest, refined = one, []
            for part in parts:
                common = part & one
                refined += [common, part & ~one] if common and common != part else [part]
                rest &= ~part
            parts = [*refined, rest] if rest else refined
        self.parts = tuple(parts)
        """The ranks of each segment."""
        self._numbers: dict[RankSet, tuple[int, ...]] = {}

    def of(self, ranks: RankSet) -> tuple[int, ...]:
        """The numbers of the segments that have ranks of a set."""
        found = self._numbers.get(ranks)
        if found is None:
            found = tuple(number for number, part in enumerate(self.parts) if part & ranks)
            self._numbers[ranks] = found
        return found
