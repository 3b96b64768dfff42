"""Balances the elements that owners of the same elements send, as evenly as possible. Plain numbers, no tensors."""

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
"""Balancing stops once the busiest rank is this close, relatively, to the lower bound of any plan."""


@dataclass(frozen=True)
class SenderShares:
    """The amount of each demand that each of its owners sends, as real numbers."""

    by_owners: Mapping[Ranks, tuple[float, ...]]
    """Owners of the same elements -> the amount that each of them sends, in their order."""
    min_max_sent: float
    """Lower bound: however the demands are shared, some rank sends at least this much."""


def balance_senders(demands: Mapping[Ranks, float]) -> SenderShares:
    """Split each demand over its owners so that the busiest rank sends as little as possible.

    Each set of owners in turn fills up its least busy members, like water in a basin, until no step improves the
    result. This minimises the sum of squares of the loads, a convex function, over one simplex for each set of owners;
    at its minimum the largest load is minimal, too.

    >>> balance_senders({(0,): 6.0, (0, 1): 4.0, (1, 2): 4.0}).by_owners[(0, 1)]
    (0.0, 4.0)
    """
    loads: dict[int, float] = {rank: 0.0 for owners in demands for rank in owners}
    shares: dict[Ranks, tuple[float, ...]] = {owners: (0.0,) * len(owners) for owners in demands}
    # Sets without a choice come first: for nested sets, one sweep is then enough.
    order = sorted(demands, key=lambda owners: (len(owners), owners))
    bound = 0.0
    for _ in range(MAX_SWEEPS):
        for owners in order:
            other_loads = [loads[rank] - share for rank, share in zip(owners, shares[owners], strict=True)]
            shares[owners] = _water_fill(other_loads, demands[owners])
            for rank, other_load, share in zip(owners, other_loads, shares[owners], strict=True):
                loads[rank] = other_load + share
        bound = max(bound, _lower_bound(demands, loads))
        if max(loads.values(), default=0.0) <= (1 + PRECISION) * bound:
            break
    return SenderShares(shares, bound)


def _water_fill(levels: list[float], amount: float) -> tuple[float, ...]:
    """The part of `amount` that each level gets when it is poured over them: the lowest rise to a common level."""
    total, level = 0.0, 0.0
    for n, lowest in enumerate(sorted(levels), 1):
        total += lowest
        if n > 1 and lowest >= level:
            break
        level = (total + amount) / n
    return tuple(max(0.0, level - height) for height in levels)


def _lower_bound(demands: Mapping[Ranks, float], loads: Mapping[int, float]) -> float:
    """Lower bound of the largest load: the amount that only the busiest `n` ranks can send over `n`, for the best `n`.

    When the loads are as even as possible, the bound is the largest load itself.
    """
    busiest = sorted(loads, key=lambda rank: -loads[rank])
    position = {rank: n for n, rank in enumerate(busiest)}
    only_up_to = [0.0] * len(busiest)
    for owners, demand in demands.items():
        only_up_to[max(position[rank] for rank in owners)] += demand
    return max((amount / n for n, amount in enumerate(accumulate(only_up_to), 1)), default=0.0)


class BoxOfParams(NamedTuple):
    """The same box of several parameters."""

    names: tuple[str, ...]
    box: Box
    itemsize: int = 1

    @property
    def numel(self) -> int:
        """Number of elements, all parameters together."""
        return len(self.names) * self.box.numel

    @property
    def weight(self) -> int:
        """Bytes if the itemsize is given, else elements."""
        return self.numel * self.itemsize


@dataclass(frozen=True)
class TransferBatch:
    """Boxes to send to all of the targets."""

    targets: Ranks
    boxes: tuple[BoxOfParams, ...]

    @cached_property
    def weight(self) -> int:
        """Total weight of the elements sent to all targets."""
        return len(self.targets) * sum(box.weight for box in self.boxes)


def cut_by_sender(
    batches: Sequence[TransferBatch], shares: Sequence[float], slack: float
) -> Iterator[list[TransferBatch]]:
    """Divide a sequence of batches between senders: each gets a consecutive part of about its share.

    A cut is made between targets, boxes or parameters if there is such a position within `slack` of the exact one;
    otherwise a parameter is cut, along its first dim if its rows are fine enough. The sequence is cut at most once for
    each sender but the last, and the errors of the cuts do not accumulate.
    """
    rest, start, stop = list(reversed(batches)), 0.0, 0.0
    for share in shares[:-1]:
        stop += share
        taken: list[TransferBatch] = []
        while rest and start + rest[-1].weight <= stop:
            taken.append(rest.pop())
            start += taken[-1].weight
        if rest and stop > start:
            first, second = _split(rest.pop(), stop - start, slack)
            taken += first
            start += sum(batch.weight for batch in first)
            rest += reversed(second)
        yield taken
    yield list(reversed(rest))


def _split(batch: TransferBatch, amount: float, slack: float) -> tuple[list[TransferBatch], list[TransferBatch]]:
    """Split a batch into about its first `amount`, and the rest."""
    n_units, units = _units(batch)
    near_an_end = len(batch.targets) == 1 and min(amount, batch.weight - amount) <= slack
    if n_units == 1 or near_an_end:
        return ([], [batch]) if amount < batch.weight / 2 else ([batch], [])

    def units_if_any(start: int, stop: int) -> list[TransferBatch]:
        return [units(start, stop)] if start < stop else []

    n = bisect_right(range(1, n_units), amount, key=lambda n: units(0, n).weight)
    first, second = _split(units(n, n + 1), amount - units(0, n).weight, slack)
    if first and second:
        return [*units_if_any(0, n), *first], [*second, *units_if_any(n + 1, n_units)]
    n += bool(first)  # a unit that is not split stays in one piece with its neighbours
    return units_if_any(0, n), units_if_any(n, n_units)


def _units(batch: TransferBatch) -> tuple[int, Callable[[int, int], TransferBatch]]:
    """The number of units of a batch, and a function that returns the units `start` up to `stop` as a batch.

    Units are as coarse as possible: targets, boxes, parameters, rows, slices of a row; last, single elements.
    """
    targets, boxes = batch.targets, batch.boxes
    if len(targets) > 1:
        return len(targets), lambda start, stop: TransferBatch(targets[start:stop], boxes)
    if len(boxes) > 1:
        return len(boxes), lambda start, stop: TransferBatch(targets, boxes[start:stop])
    ((names, box, itemsize),) = boxes
    if len(names) > 1:
        return len(names), lambda start, stop: TransferBatch(targets, (BoxOfParams(names[start:stop], box, itemsize),))
    dim = next((dim for dim, size in enumerate(box.shape) if size > 1), None)
    if dim is None:
        return 1, lambda start, stop: batch
    return box.shape[dim], lambda start, stop: TransferBatch(
        targets, (BoxOfParams(names, box.narrowed(dim, start, stop), itemsize),)
    )
