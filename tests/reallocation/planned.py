"""What any plan must fulfil, found out element by element; shares no code with the planner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from reallm.model.sharding import Box
from reallm.reallocation.plan import Plan
from reallm.reallocation.types import RankPlan

Boxes = Mapping[int, Mapping[str, Box]]
"""Rank -> name -> its part."""


def shapes(*sides: Boxes) -> dict[str, tuple[int, ...]]:
    """Sizes that are enough for all boxes of each name."""
    found: dict[str, tuple[int, ...]] = {}
    for boxes in (boxes for side in sides for boxes in side.values()):
        for name, box in boxes.items():
            found[name] = tuple(map(max, found.get(name, box.stops), box.stops))
    return found


def fulfils(plan: Plan, source: Boxes, target: Boxes) -> None:
    """Follow a plan with numbered elements: each that is missing comes once, from one who has it."""
    numbered = {name: np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape)
                for name, shape in shapes(source, target).items()}  # fmt: skip
    nothing = RankPlan((), (), ())
    plans = {rank: plan.for_rank(rank) for rank in sorted({*source, *target})}
    for rank, boxes in target.items():
        result = {name: np.zeros(box.shape, dtype=int) for name, box in boxes.items()}
        for move in (*plans[rank].receives, *plans[rank].keeps):
            assert move.target == rank
            assert move.box.numel
            for name in move.names:
                held = source[move.source][name]
                assert (move.box & held) == move.box, f"rank {move.source} has no {name} {move.box}"
                # What comes twice is added up, which no numbering survives.
                result[name][move.box.within(boxes[name]).slices] += numbered[name][move.box.slices]
        for name, box in boxes.items():
            assert np.array_equal(result[name], numbered[name][box.slices]), (rank, name)
        assert all(move.source == rank for move in plans[rank].keeps)
        assert all(move.source != rank for move in plans[rank].receives)
    for a in plans:
        for b in plans:
            sent = [move for move in plans[a].sends if move.target == b]
            assert sent == [move for move in plans.get(b, nothing).receives if move.source == a]


def demands(source: Boxes, target: Boxes, itemsizes: Mapping[str, int] | None = None) -> Counter[int]:
    """Ranks that have an element, as a set of bits -> how much of what they have is missing somewhere."""
    found: Counter[int] = Counter()
    for name, shape in shapes(source, target).items():
        owners = np.zeros(shape, dtype=int)
        for rank, boxes in source.items():
            if name in boxes:
                owners[boxes[name].slices] |= 1 << rank
        for rank, boxes in target.items():
            if name in boxes:
                wanted = owners[boxes[name].slices]
                for bits, n in zip(*np.unique(wanted[wanted >> rank & 1 == 0], return_counts=True), strict=True):
                    found[int(bits)] += int(n) * (itemsizes or {}).get(name, 1)
    return found


def least_of_the_busiest(demands: Mapping[int, int]) -> float:
    """The smallest load that the busiest sender can have, if elements could be divided at will.

    By the theorem of Hall for divisible loads: the largest, over all sets of ranks, of what only they can send, divided
    among them.
    """
    n_ranks = max(demands, default=0).bit_length()
    return max(
        (
            sum(n for bits, n in demands.items() if bits & ~ranks == 0) / ranks.bit_count()
            for ranks in range(1, 1 << n_ranks)
        ),
        default=0.0,
    )
