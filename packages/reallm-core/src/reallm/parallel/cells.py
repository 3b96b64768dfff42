"""Of a tensor's part: which ranks have it, cut so finely that each piece is held whole or not at all."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import accumulate

from reallm.model.box import Box
from reallm.parallel.moves import Ranks

Cell = tuple[Box, Ranks]
"""A part of a tensor, and all the ranks that have it."""


class Holdings:
    """The parts of one tensor that ranks have; says of any other part in which pieces it can be had.

    Parts are found by their place along the first dim, so that a thousand ranks with some rows each cost no more than
    those that share rows with the one asked about.
    """

    def __init__(self, held: Mapping[Box, Ranks]) -> None:
        self._held = sorted(held.items(), key=lambda item: item[0].starts[:1])
        self._starts = [_span(box)[0] for box, _ in self._held]
        # Not of one part but of all up to it: these ascend, whatever the parts are, and can be searched.
        self._stops = list(accumulate((_span(box)[1] for box, _ in self._held), max))
        self._disjoint = all(len(self._overlapping(box)) == 1 for box, _ in self._held)

    def cells(self, box: Box) -> list[Cell]:
        """The pieces of a part, each with all who have it. What nobody has is left out."""
        overlapping = self._overlapping(box)
        return overlapping if self._disjoint else _refined(box, overlapping)

    def _overlapping(self, box: Box) -> list[Cell]:
        """What each part that is held has in common with `box`."""
        start, stop = _span(box)
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        shared = ((box & held, ranks) for held, ranks in self._held[first:last])
        return [cell for cell in shared if cell[0].numel]


def _span(box: Box) -> tuple[int, int]:
    return (box.starts[0], box.stops[0]) if box.starts else (0, 1)


def _refined(box: Box, overlapping: list[Cell]) -> list[Cell]:
    """Pieces that have nothing in common, of parts that may."""
    cells: list[Cell] = []
    for held, ranks in overlapping:
        finer: list[Cell] = []
        rest = [held]
        for piece, holders in cells:
            shared = piece & held
            if not shared.numel:
                finer.append((piece, holders))
                continue
            finer.append((shared, tuple(sorted({*holders, *ranks}))))
            finer += [(outside, holders) for outside in piece - held]
            rest = [left for part in rest for left in part - shared]
        cells = [*finer, *((left, ranks) for left in rest)]
    return cells
