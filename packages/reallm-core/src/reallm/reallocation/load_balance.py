"""Who sends how much, when several ranks have the same: as evenly as can be. Plain numbers, no tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from reallm.model.sharding import Box
from reallm.reallocation.types import Ranks

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


def balance_senders(demands: Mapping[Ranks, float]) -> Shares:
    """Split each demand over the ranks that can meet it, so that the busiest rank has little to do.

    Each group of ranks in turn fills up those of its members with least to do, like water in a basin, until nothing
    gains any more. This minimises the sum of squares of the loads, a convex function, over one simplex for each group;
    where it is least, the largest load is least too.

    >>> balance_senders({(0,): 6.0, (0, 1): 4.0, (1, 2): 4.0}).of[(0, 1)]
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


class BoxOfParams(NamedTuple):
    """The same part of several parameters."""

    names: tuple[str, ...]
    box: Box
    itemsize: int = 1

    @property
    def numel(self) -> int:
        """Elements of all its parameters together."""
        return len(self.names) * self.box.numel

    @property
    def weight(self) -> int:
        """Bytes of them, if the itemsize is given."""
        return self.numel * self.itemsize


@dataclass(frozen=True)
class TransferBatch:
    """Parts that each of some ranks is to have."""

    targets: Ranks
    parts: tuple[BoxOfParams, ...]

    @cached_property
    def weight(self) -> int:
        """Of all that is sent to all targets."""
        return len(self.targets) * sum(part.weight for part in self.parts)


def cut_by_sender(
    line: Sequence[TransferBatch], shares: Sequence[float], slack: float
) -> Iterator[list[TransferBatch]]:
    """The bundles of each sender: neighbours in the line, about as much as its share.

    Cuts lie between targets, or within `slack` of where they should be between parts or parameters; only where there
    is no such place is a parameter cut, along its first dim if its rows are fine enough. In all, a line is cut at most
    once for each sender but the last, and the errors of the cuts do not add up.
    """
    rest, start, stop = list(reversed(line)), 0.0, 0.0
    for share in shares[:-1]:
        stop += share
        mine: list[TransferBatch] = []
        while rest and start + rest[-1].weight <= stop:
            mine.append(rest.pop())
            start += mine[-1].weight
        if rest and stop > start:
            taken, left = _cut(rest.pop(), stop - start, slack)
            mine += taken
            start += sum(bundle.weight for bundle in taken)
            rest += reversed(left)
        yield mine
    yield list(reversed(rest))


def _cut(bundle: TransferBatch, amount: float, slack: float) -> tuple[list[TransferBatch], list[TransferBatch]]:
    """About the first `amount` of a bundle, and the rest."""
    n_units, units = _units(bundle)
    near_an_end = len(bundle.targets) == 1 and min(amount, bundle.weight - amount) <= slack
    if n_units == 1 or near_an_end:
        return ([], [bundle]) if amount < bundle.weight / 2 else ([bundle], [])

    def some(start: int, stop: int) -> list[TransferBatch]:
        return [units(start, stop)] if start < stop else []

    n = bisect_right(range(1, n_units), amount, key=lambda n: units(0, n).weight)
    taken, left = _cut(units(n, n + 1), amount - units(0, n).weight, slack)
    if taken and left:
        return [*some(0, n), *taken], [*left, *some(n + 1, n_units)]
    n += bool(taken)  # a unit that stays whole stays with its neighbours, as one piece
    return some(0, n), some(n, n_units)


def _units(bundle: TransferBatch) -> tuple[int, Callable[[int, int], TransferBatch]]:
    """How many units a bundle is made of, and what makes a bundle of those from one up to another.

    Units are as coarse as they can be: targets, parts, parameters, rows, what rows are made of; last a single element.
    """
    targets, parts = bundle.targets, bundle.parts
    if len(targets) > 1:
        return len(targets), lambda start, stop: TransferBatch(targets[start:stop], parts)
    if len(parts) > 1:
        return len(parts), lambda start, stop: TransferBatch(targets, parts[start:stop])
    ((names, box, itemsize),) = parts
    if len(names) > 1:
        return len(names), lambda start, stop: TransferBatch(targets, (BoxOfParams(names[start:stop], box, itemsize),))
    dim = next((dim for dim, size in enumerate(box.shape) if size > 1), None)
    if dim is None:
        return 1, lambda start, stop: bundle
    return box.shape[dim], lambda start, stop: TransferBatch(
        targets, (BoxOfParams(names, box.narrowed(dim, start, stop), itemsize),)
    )
