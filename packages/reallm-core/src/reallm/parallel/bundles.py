"""What is to be sent as one line of pieces, and where the line is cut between its senders."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from reallm.model.box import Box
from reallm.parallel.moves import Ranks


class Part(NamedTuple):
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
class Bundle:
    """Parts that each of some ranks is to have."""

    targets: Ranks
    parts: tuple[Part, ...]

    @cached_property
    def weight(self) -> int:
        """Of all that is sent to all targets."""
        return len(self.targets) * sum(part.weight for part in self.parts)


def shared_out(line: Sequence[Bundle], shares: Sequence[float], slack: float) -> Iterator[list[Bundle]]:
    """The bundles of each sender: neighbours in the line, about as much as its share.

    Cuts lie between targets, or within `slack` of where they should be between parts or parameters; only where there
    is no such place is a parameter cut, along its first dim if its rows are fine enough. In all, a line is cut at most
    once for each sender but the last, and the errors of the cuts do not add up.
    """
    rest, start, stop = list(reversed(line)), 0.0, 0.0
    for share in shares[:-1]:
        stop += share
        mine: list[Bundle] = []
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


def _cut(bundle: Bundle, amount: float, slack: float) -> tuple[list[Bundle], list[Bundle]]:
    """About the first `amount` of a bundle, and the rest."""
    n_units, units = _units(bundle)
    near_an_end = len(bundle.targets) == 1 and min(amount, bundle.weight - amount) <= slack
    if n_units == 1 or near_an_end:
        return ([], [bundle]) if amount < bundle.weight / 2 else ([bundle], [])

    def some(start: int, stop: int) -> list[Bundle]:
        return [units(start, stop)] if start < stop else []

    n = bisect_right(range(1, n_units), amount, key=lambda n: units(0, n).weight)
    taken, left = _cut(units(n, n + 1), amount - units(0, n).weight, slack)
    if taken and left:
        return [*some(0, n), *taken], [*left, *some(n + 1, n_units)]
    n += bool(taken)  # a unit that stays whole stays with its neighbours, as one piece
    return some(0, n), some(n, n_units)


def _units(bundle: Bundle) -> tuple[int, Callable[[int, int], Bundle]]:
    """How many units a bundle is made of, and what makes a bundle of those from one up to another.

    Units are as coarse as they can be: targets, parts, parameters, rows, what rows are made of; last a single element.
    """
    targets, parts = bundle.targets, bundle.parts
    if len(targets) > 1:
        return len(targets), lambda start, stop: Bundle(targets[start:stop], parts)
    if len(parts) > 1:
        return len(parts), lambda start, stop: Bundle(targets, parts[start:stop])
    ((names, box, itemsize),) = parts
    if len(names) > 1:
        return len(names), lambda start, stop: Bundle(targets, (Part(names[start:stop], box, itemsize),))
    dim = next((dim for dim, size in enumerate(box.shape) if size > 1), None)
    if dim is None:
        return 1, lambda start, stop: bundle
    return box.shape[dim], lambda start, stop: Bundle(targets, (Part(names, box.narrowed(dim, start, stop), itemsize),))
