"""Who sends how much, when several ranks have the same: as evenly as can be. Plain numbers, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from reallm.parallel.moves import Ranks

MAX_SWEEPS = 200
PRECISION = 1e-3
"""Sharing out ends once the busiest rank is this close to what no plan can go below."""


@dataclass(frozen=True)
class Shares:
    """What each of the ranks that have something sends of it, as real numbers."""

    of: Mapping[Ranks, tuple[float, ...]]
    """Ranks that have the same -> what each of them sends, in their order."""
    least: float
    """However it is shared out, some rank sends at least this much."""


def share_out(demands: Mapping[Ranks, float]) -> Shares:
    """Split each demand over the ranks that can meet it, so that the busiest rank has little to do.

    Each group of ranks in turn fills up those of its members with least to do, like water in a basin, until nothing
    gains any more. This minimises the sum of squares of the loads, a convex function, over one simplex for each group;
    where it is least, the largest load is least too.

    >>> share_out({(0,): 6.0, (0, 1): 4.0, (1, 2): 4.0}).of[(0, 1)]
    (0.0, 4.0)
    """
    loads: dict[int, float] = {rank: 0.0 for ranks in demands for rank in ranks}
    shares: dict[Ranks, tuple[float, ...]] = {ranks: (0.0,) * len(ranks) for ranks in demands}
    # Who has no choice comes first: of groups inside one another, one round is then all it takes.
    order = sorted(demands, key=lambda ranks: (len(ranks), ranks))
    least = 0.0
    for _ in range(MAX_SWEEPS):
        for ranks in order:
            others = [loads[rank] - share for rank, share in zip(ranks, shares[ranks], strict=True)]
            shares[ranks] = _filled(others, demands[ranks])
            for rank, other, share in zip(ranks, others, shares[ranks], strict=True):
                loads[rank] = other + share
        least = max(least, _least(demands, loads))
        if max(loads.values(), default=0.0) <= (1 + PRECISION) * least:
            break
    return Shares(shares, least)


def _filled(levels: list[float], amount: float) -> tuple[float, ...]:
    """How much goes to each place when `amount` is poured over them: the lowest are raised to one level."""
    total, level = 0.0, 0.0
    for n, lowest in enumerate(sorted(levels), 1):
        total += lowest
        if n > 1 and lowest >= level:
            break
        level = (total + amount) / n
    return tuple(max(0.0, level - height) for height in levels)


def _least(demands: Mapping[Ranks, float], loads: Mapping[int, float]) -> float:
    """A bound that holds for any sharing: what only the busiest `n` ranks can send, over `n`, for the best `n`.

    When the loads are as even as can be, the bound is the largest load itself.
    """
    busiest = sorted(loads, key=lambda rank: -loads[rank])
    place = {rank: n for n, rank in enumerate(busiest)}
    theirs = [0.0] * len(busiest)
    for ranks, demand in demands.items():
        theirs[max(place[rank] for rank in ranks)] += demand
    return max((amount / n for n, amount in enumerate(accumulate(theirs), 1)), default=0.0)
