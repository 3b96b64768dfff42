"""`RankLoads`: how long the calls on one rank take at least, with the offloads that its memory asks for.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from reallm.planning.places import Place
from reallm.planning.simulator import Simulator

Copies = frozenset[int]
"""Numbers of copies of models."""


class _Copy(NamedTuple):
    """A copy of a model on a rank, and the calls that use it."""

    kept: int
    """Bytes between the calls."""
    transient: int
    """Bytes that one of the calls needs beside those that are kept, at most."""
    in_call: int
    """Bytes that one of the calls needs if the copy is in host memory before and after it, at most."""
    host_copy: float
    """Seconds that it takes to come back from host memory, or to leave."""


class _Sets(NamedTuple):
    """What each set of some copies takes; bit n of an index stands for the n-th copy."""

    kept: list[int]
    """Sum of the bytes that they keep."""
    transient: list[int]
    in_call: list[int]
    """Most bytes that one of them needs, as in `_Copy`."""
    copied: list[float]
    """Sum of the seconds of the copies to or from host memory."""
    longest: list[float]
    """The longest of these."""


class LeastTime(NamedTuple):
    """The least time of a rank in a step."""

    seconds: float
    with_moves: float
    """The same without what moves of weights may go on beside, to which their time is to be added."""

    def of_moves(self, moves: float) -> float:
        """The least seconds if moves of weights take so long."""
        return max(self.seconds, self.with_moves + moves)


class RankLoads:
    """The least time of a rank in a step, by the calls that it computes; each combination of them has a number.

    A copy of a model that is offloaded comes back once in a step, while its ranks wait. Its ranks also wait for it to
    leave before their next call, but may move weights meanwhile, and the last one leaves beside the end of the step.

    Args:
        simulator: the simulator.
        given: the calls, by number, that are offloaded or not as given.
    """

    def __init__(self, simulator: Simulator, given: Collection[int] = ()) -> None:
        self._simulator, self._machine, self._given = simulator, simulator.machine, frozenset(given)
        self._calls = simulator.graph.calls
        self._places: list[tuple[Place, ...]] = [()]
        """The calls of each combination, in the order of the graph: sums then are the same in every run."""
        self._busy = [0.0]
        """The seconds that the calls of each combination take."""
        self._numbers: dict[tuple[Place, ...], int] = {(): 0}
        self._next: dict[tuple[int, Place], int] = {}
        self._copies: dict[tuple[Place, ...], _Copy] = {}
        self._sets: dict[tuple[_Copy, ...], _Sets] = {(): _Sets([0], [0], [0], [0.0], [0.0])}
        # by the copies: combinations of calls that need the same memory are many
        self._offloads_of = lru_cache(maxsize=None)(self._offloading)
        self._least_of = lru_cache(maxsize=None)(self._least_offloading)
        self.least = [LeastTime(0.0, 0.0)]
        """The least times of each combination, with any offloads; infinite if it does not fit into memory."""

    def add(self, load: int, one: Place) -> int:
        """The combination of some calls and one more.

        Args:
            load: number of the combination; 0 is that of no calls.
            one: the place of the call.
        """
        found = self._next.get((load, one))
        if found is None:
            places = tuple(sorted((*self._places[load], one), key=_number))
            found = self._numbers.get(places)
            if found is None:
                found = self._numbers[places] = len(self._places)
                self._places.append(places)
                self._busy.append(sum([each.seconds for each in places]))
                self.least.append(self._least(found))
            self._next[load, one] = found
        return found

    def least_seconds(self, places: Sequence[Place]) -> tuple[float, float]:
        """The least seconds of a step, whether it fits into memory or not; and with those offloads with which it fits:
        infinite if some rank has too little memory with any."""
        loads = set(self._loads(places))
        return max([self._busy[load] for load in loads]), max([self.least[load].seconds for load in loads])

    def offloads(self, places: Sequence[Place]) -> list[tuple[float, Copies]]:
        """The sets of copies with whose offloads all ranks may have enough memory, those of the least time first.

        Args:
            places: the places of all calls.

        Returns:
            The least seconds of a step, and the copies.
        """
        of_ranks = [
            (self._busy[load], list(self._of_copies(load)), self._offloads_of(self._copies_of(load)))
            for load in set(self._loads(places))
        ]
        order = sorted({copy for _, copies, _ in of_ranks for copy in copies})
        masks = [_masks(order, copies) for _, copies, _ in of_ranks]  # of all sets, in the terms of each load
        found = []
        for chosen in _subsets(len(order)):
            least = 0.0
            for of_load, (busy, _, offloads) in zip(masks, of_ranks, strict=True):
                more = offloads.get(of_load[chosen])
                if more is None:
                    break
                least = max(least, busy + more)
            else:
                moved = frozenset([copy for number, copy in enumerate(order) if chosen >> number & 1])
                found.append((least, moved))
        return sorted(found, key=lambda item: (item[0], len(item[1])))

    def _loads(self, places: Sequence[Place]) -> Iterator[int]:
        """The combinations of calls of the ranks of each segment."""
        for part in self._simulator.segments(places).parts:
            load = 0
            for one in places:
                if one.ranks & part:
                    load = self.add(load, one)
            yield load

    def _least(self, load: int) -> LeastTime:
        """The least times of a rank."""
        busy, more = self._busy[load], self._least_of(self._copies_of(load))
        return LeastTime(busy + more.seconds, busy + more.with_moves)

    def _of_copies(self, load: int) -> dict[int, tuple[Place, ...]]:
        """The copies of a rank, and the calls that use each."""
        found: dict[int, tuple[Place, ...]] = {}
        for one in self._places[load]:
            if one.copy >= 0 and not self._calls[one.call].precompute:
                found[one.copy] = (*found.get(one.copy, ()), one)
        return found

    def _copies_of(self, load: int) -> tuple[_Copy, ...]:
        return tuple([self._copy(users) for users in self._of_copies(load).values()])

    def _fitting(self, copies: tuple[_Copy, ...]) -> Iterator[tuple[int, float, float]]:
        """The sets of copies of a rank with whose offloads all calls have enough memory.

        Returns:
            Of each set, in which bit n stands for the n-th copy, the seconds that its copies take to or from host
            memory, of all and of the longest.
        """
        sets, memory, in_both = self._sets_of(copies), self._machine.memory, self._machine.device == "cpu"
        host_memory = self._machine.host_memory  # as `Machine.fits` has it, which would be called for all sets
        rest = zip(reversed(sets.kept), reversed(sets.transient), strict=True)  # of the sets of all other copies
        columns = zip(sets.kept, sets.in_call, rest, sets.copied, sets.longest, strict=True)
        for moved, (in_host, in_call, (kept, transient), copied, longest) in enumerate(columns):
            n_bytes = kept + (in_call if in_call > transient else transient) + in_both * in_host
            if n_bytes <= memory and in_host <= host_memory:
                yield moved, copied, longest

    def _offloading(self, copies: tuple[_Copy, ...]) -> Mapping[int, float]:
        """The seconds that offloads add to the calls of a rank, for each set of copies that fits."""
        return {moved: 2 * copied - longest for moved, copied, longest in self._fitting(copies)}

    def _least_offloading(self, copies: tuple[_Copy, ...]) -> LeastTime:
        """The least that offloads add to the calls of a rank; infinite if none is enough."""
        kept = sum([one.kept for one in copies])
        if self._machine.fits(kept + max([one.transient for one in copies], default=0), 0):
            return LeastTime(0.0, 0.0)  # without any
        seconds = with_moves = math.inf
        for _, copied, longest in self._fitting(copies):
            if 2 * copied - longest < seconds:
                seconds = 2 * copied - longest
            if copied < with_moves:
                with_moves = copied
        return LeastTime(seconds, with_moves)

    def _sets_of(self, copies: tuple[_Copy, ...]) -> _Sets:
        """What all sets of some copies take: those of the copies before the last one, without it and with it."""
        found = self._sets.get(copies)
        if found is None:
            before, (kept, transient, in_call, host_copy) = self._sets_of(copies[:-1]), copies[-1]
            found = self._sets[copies] = _Sets(
                before.kept + [n + kept for n in before.kept],
                before.transient + [n if n > transient else transient for n in before.transient],
                before.in_call + [n if n > in_call else in_call for n in before.in_call],
                before.copied + [seconds + host_copy for seconds in before.copied],
                before.longest + [seconds if seconds > host_copy else host_copy for seconds in before.longest],
            )
        return found

    def _copy(self, users: tuple[Place, ...]) -> _Copy:
        found = self._copies.get(users)
        if found is None:
            kept = max([one.memory.parameters for one in users]) + max([one.memory.optimizer for one in users])
            transient = max([one.transient for one in users])
            in_call = max([one.memory.kept + one.transient for one in users])
            if any(one.call in self._given for one in users):  # it may be offloaded between its calls, or never
                found = _Copy(0, in_call, in_call, 0.0)
            else:
                trained = next((one for one in users if self._calls[one.call].kind == "train_step"), None)
                user = trained or users[0]
                seconds = self._simulator.host_copy_seconds(user.call, user, with_optimizer=trained is not None)
                found = _Copy(kept, transient, in_call, seconds)
            self._copies[users] = found
        return found


def _number(one: Place) -> int:
    return one.call


def _masks(order: Sequence[int], copies: Sequence[int]) -> list[int]:
    """For each set of the ordered copies, as bits, the bits of those that are among the copies of a load."""
    found = [0]
    for copy in order:
        bit = 1 << copies.index(copy) if copy in copies else 0
        found += [mask | bit for mask in found]
    return found


@lru_cache(maxsize=64)
def _subsets(n: int) -> list[int]:
    """All sets of so many things, as bits, the smallest first."""
    return [sum(1 << one for one in chosen) for size in range(n + 1) for chosen in combinations(range(n), size)]
