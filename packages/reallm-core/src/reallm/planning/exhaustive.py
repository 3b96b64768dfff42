"""Exhaustive search: the best of all plans that candidates allow, by branch and bound. Imports no torch."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from reallm.planning.bounds import Bounds
from reallm.planning.offloading import Fitted, Fitting
from reallm.planning.places import Place
from reallm.planning.rank_sets import RankSet
from reallm.planning.simulator import Simulator

Mesh = tuple[int, int]
"""A first rank and a number of ranks."""
DIVE_EVERY = 40
"""Of so many partial plans one is completed at once, for a good plan to compare others with."""
LEAST_GAIN = 1e-9
"""Share of a step that a plan must save to be a better one."""


class _Segment(NamedTuple):
    """Ranks that compute the same calls."""

    ranks: RankSet
    n_ranks: int
    load: int
    """The combination of their calls, see `RankLoads`."""
    moves: float
    """Seconds of the moves of weights that they take part in."""


class _Partial(NamedTuple):
    """Places of some calls, ordered by the least time of a step that has them."""

    bound: float
    n_missing: int
    """Calls that have no place yet: of plans that are as promising, the fullest goes first."""
    number: int
    chosen: tuple[Place, ...]
    segments: tuple[_Segment, ...]
    meshes: tuple[Mesh, ...]
    """The sets of ranks that have been chosen."""


class _Walk(NamedTuple):
    """Ranks walk through calls: each begins when those that it waits for have ended and its ranks are free."""

    stops: list[tuple[int, tuple[int, ...], tuple[int, ...], float]]
    """Each call, those that it waits for, the parts of the ranks that compute it, and its seconds."""
    n_parts: int
    n_calls: int

    def last_end(self, changed: int, its_seconds: float) -> float:
        """When the last call ends, if one of them takes other seconds."""
        free, ended, last = [0.0] * self.n_parts, [0.0] * self.n_calls, 0.0
        for call, waits_for, parts, seconds in self.stops:
            start = 0.0
            for other in waits_for:
                if ended[other] > start:
                    start = ended[other]
            for part in parts:
                if free[part] > start:
                    start = free[part]
            end = ended[call] = start + (its_seconds if call == changed else seconds)
            for part in parts:
                free[part] = end
            if end > last:
                last = end
        return last


class Exhaustive:
    """Goes through the plans call by call, the most promising first, until no other can be better than the best one.

    A lower bound (`Bounds`) follows from the calls that have a place: ranks walk through calls in order, and
    compute for at least as long as their calls take, with the reloads of what does not fit into their memory beside
    them. Of plans that differ only in the numbers of ranks, one is tried: a machine's nodes are alike, and halves of a
    node as well.

    Args:
        simulator: the simulator.
        fitting: evaluates whole plans.
        places: the places of each call, by its number.
        max_tried: number of partial plans after which the search gives up.
        is_symmetric: whether ranks may be renumbered: sizes are powers of two, and no call is given.
    """

    def __init__(
        self,
        simulator: Simulator,
        fitting: Fitting,
        places: Mapping[int, Sequence[Place]],
        max_tried: int,
        *,
        is_symmetric: bool,
    ) -> None:
        self._simulator, self._fitting = simulator, fitting
        self._n_ranks = simulator.machine.n_ranks
        self._at_home: set[Place] = set()
        """Places of calls that share the home of their role, or of the one whose base model that has."""
        self._places = {number: list(self._with_shared(number, places)) for number in places}
        self._bounds = Bounds.of(simulator.graph, self._places, self._n_ranks)
        self._others = {
            number: min(found, key=lambda one: one.seconds)
            for number, found in places.items()
            if number not in self._bounds.order
        }
        """The places of calls that are not computed in each step."""
        self._order = sorted(self._bounds.order, key=self._weight)
        """The calls in the order in which they get a place: first those that take the most time and memory."""
        work = [self._bounds.work[call] for call in self._order]
        self._work_after = [sum(work[n:]) for n in range(len(work) + 1)]
        """The least work of the calls that have no place yet, by the number of those that have one."""
        self._is_trained = [call.kind == "train_step" for call in simulator.graph.calls]
        self._loads = fitting.loads
        self._by_mesh = {number: _by_mesh(found) for number, found in self._places.items()}
        """The places of each call on each set of ranks, the fastest first."""
        self._first_meshes: dict[tuple[int, tuple[Mesh, ...]], list[tuple[Mesh, list[Place], tuple[Mesh, ...]]]] = {}
        self._is_symmetric, self._max_tried = is_symmetric, max_tried
        self._best: Fitted | None = None
        self._limit = math.inf
        """Seconds that a plan has to be faster than."""
        self.n_tried = 0
        """Number of partial plans that were tried."""
        self.bound = 0.0
        """Seconds that no plan takes less than."""

    @property
    def is_complete(self) -> bool:
        """Whether all plans have been considered."""
        return self.n_tried <= self._max_tried

    def best(self, known: Fitted | None) -> Fitted | None:
        """The best plan; None if none fits into memory.

        Args:
            known: a plan to begin with.
        """
        self._keep(known if known is not None and not known.excess else None)
        meshes = tuple(_mesh(found[0]) for found in self._places.values() if len(found) == 1)
        everything = _Segment((1 << self._n_ranks) - 1, self._n_ranks, 0, 0.0)
        waiting = [_Partial(self._bounds.step, len(self._order), 0, (), (everything,), meshes)]
        n_popped, fewest = 0, len(self._order)
        while waiting and self.is_complete:
            partial = heapq.heappop(waiting)
            self.bound = partial.bound
            if partial.bound >= self._limit:
                break
            if partial.n_missing:
                if n_popped % DIVE_EVERY == 0 or partial.n_missing < fewest:
                    self._dive(partial)
                n_popped, fewest = n_popped + 1, min(fewest, partial.n_missing)
                for one in self._extended(partial):
                    heapq.heappush(waiting, one)
            else:
                self._evaluate(partial.chosen)
        if self.is_complete and self._best is not None:
            self.bound = self._best.outcome.seconds
        return self._best

    def _dive(self, partial: _Partial) -> None:
        """Evaluate the plan of the most promising place of one call after another, with which others are compared."""
        while partial.n_missing:
            found = min(self._extended(partial), default=None)
            if found is None:
                return
            partial = found
        self._evaluate(partial.chosen)

    def _weight(self, call: int) -> tuple[bool, float]:
        return self._simulator.graph.calls[call].kind != "train_step", -self._bounds.work[call]

    def _extended(self, partial: _Partial) -> Iterator[_Partial]:
        """The plans with one more call that can be better than the best known one."""
        call = self._order[len(partial.chosen)]
        seconds = [self._loads.least[each.load].of_moves(each.moves) for each in partial.segments]
        work = sum([of_rank * each.n_ranks for of_rank, each in zip(seconds, partial.segments, strict=True)])
        work += self._work_after[len(partial.chosen) + 1]
        for mesh, places, meshes in self._meshes(call, partial.meshes):
            ranks, walk = places[0].ranks, None
            busy = max([one for one, each in zip(seconds, partial.segments, strict=True) if each.ranks & ranks])
            for one in places:
                self.n_tried += 1
                if max(busy + one.seconds, (work + mesh[1] * one.seconds) / self._n_ranks) >= self._limit:
                    break  # nor can those that take longer
                if not self._is_possible(partial.chosen, one):
                    continue
                walk = walk or self._walk((*partial.chosen, one), list(_split(partial.segments, ranks)))
                bound = max(partial.bound, walk.last_end(call, one.seconds))
                if bound >= self._limit:
                    break  # before moves and offloads are looked at, which takes longer
                chosen, segments = (*partial.chosen, one), self._with_call(partial, one)
                if segments is None:
                    continue
                bound = max(bound, self._least(segments, len(chosen)))
                if bound < self._limit:
                    yield _Partial(bound, partial.n_missing - 1, self.n_tried, chosen, segments, meshes)

    def _meshes(self, call: int, meshes: tuple[Mesh, ...]) -> list[tuple[Mesh, list[Place], tuple[Mesh, ...]]]:
        """The sets of ranks on which a call is tried once others have been chosen, with its places on each, and all
        sets that have been chosen then."""
        found = self._first_meshes.get((call, meshes))
        if found is None:
            found = self._first_meshes[call, meshes] = [
                (mesh, places, meshes if mesh in meshes else (*meshes, mesh))
                for mesh, places in self._by_mesh[call].items()
                if not self._is_symmetric or is_first_alike(mesh, meshes, self._n_ranks)
            ]
        return found

    def _with_call(self, partial: _Partial, one: Place) -> tuple[_Segment, ...] | None:
        """The segments once a call is placed; None if the ranks of one take too long."""
        found = []
        moves, loads, limit = self._moves(partial.chosen, one), self._loads, self._limit
        for ranks, n_ranks, load, seconds in partial.segments:
            common = ranks & one.ranks
            rest = n_ranks - common.bit_count()
            if rest:
                found.append(_Segment(ranks ^ common, rest, load, _with_moves(seconds, moves, ranks ^ common)))
            if common:
                load, seconds = loads.add(load, one), _with_moves(seconds, moves, common)
                if loads.least[load].of_moves(seconds) >= limit:
                    return None
                found.append(_Segment(common, n_ranks - rest, load, seconds))
        return tuple(found)

    def _moves(self, chosen: Sequence[Place], one: Place) -> list[tuple[float, RankSet]]:
        """Seconds and ranks of the moves of weights to copies of a trained model that a call brings about."""
        home = self._simulator.homes.get(one.call, one.call)
        if not self._is_trained[home]:
            return []
        role = [other for other in chosen if self._simulator.homes.get(other.call, other.call) == home]
        if one.call == home:
            guests = {other.copy: other for other in role if other.copy != one.copy}
            return [self._move(one, guest) for guest in guests.values()]
        at_home = next((other for other in role if other.call == home), None)
        if at_home is None or one.copy in {other.copy for other in role}:
            return []
        return [self._move(at_home, one)]

    def _move(self, home: Place, guest: Place) -> tuple[float, RankSet]:
        return self._simulator.move_seconds(home, guest), home.ranks | guest.ranks

    def _least(self, segments: Sequence[_Segment], n_chosen: int) -> float:
        """The least seconds of a step with some calls, by the work of ranks."""
        seconds = [self._loads.least[each.load].of_moves(each.moves) for each in segments]
        work = sum([of_rank * each.n_ranks for of_rank, each in zip(seconds, segments, strict=True)])
        return max(*seconds, (work + self._work_after[n_chosen]) / self._n_ranks)

    def _walk(self, chosen: Sequence[Place], parts: Sequence[RankSet]) -> _Walk:
        """The calls that have a place, and those without one: these take no ranks, but as long as they take at least.

        Args:
            chosen: the calls that have a place.
            parts: the ranks, in sets that compute the same calls.
        """
        by_call = {one.call: one for one in chosen}
        stops: list[tuple[int, tuple[int, ...], tuple[int, ...], float]] = []
        for call in self._bounds.order:
            one = by_call.get(call)
            if one is None:
                stops.append((call, self._bounds.waits_for[call], (), self._bounds.seconds[call]))
            else:
                numbers = tuple([number for number, part in enumerate(parts) if part & one.ranks])
                stops.append((call, self._bounds.waits_for[call], numbers, one.seconds))
        return _Walk(stops, len(parts), len(self._is_trained))

    # ------------------------------------------------------------------ calls that share a copy of a model

    def _with_shared(self, call: int, places: Mapping[int, Sequence[Place]]) -> Iterator[Place]:
        """The places of a call, and those at the home of its role if that is sharded."""
        yield from places[call]
        layouts = {one.copy: one.plan.layout for one in places[self._simulator.homes.get(call, call)]}
        for one in places[call]:
            layout = layouts.get(one.copy, one.plan.layout)
            if layout != one.plan.layout:
                at_home = self._simulator.place(call, dataclasses.replace(one.plan, layout=layout))
                self._at_home.add(at_home)
                yield at_home
        yield from self._at_base(call, places)

    def _at_base(self, call: int, places: Mapping[int, Sequence[Place]]) -> Iterator[Place]:
        """The places of a call in the home of the role whose base model it has."""
        home = self._simulator.base_homes.get(call)
        homes = {one.plan.layout.without_fsdp: one for one in (places[home] if home is not None else ())}
        for one in places[call]:
            at_home = homes.get(one.plan.layout.without_fsdp)
            if at_home is not None and not one.plan.offload and not one.plan.prefetch:
                at_base = self._simulator.at_base(one, at_home)
                self._at_home.add(at_base)
                yield at_base

    def _is_possible(self, chosen: Sequence[Place], one: Place) -> bool:
        """Whether a place goes with those of other calls to its role."""
        homes, base_homes = self._simulator.homes, self._simulator.base_homes
        for other in chosen:
            if base_homes.get(one.call) == other.call:  # which trains, and so has a place before this one
                is_there = one.plan.layout.without_fsdp == other.plan.layout.without_fsdp
                if is_there != (one in self._at_home):
                    return False
            home, guest = (one, other) if homes.get(other.call) == one.call else (other, one)
            if homes.get(guest.call) != home.call:
                continue
            if guest.copy != home.copy:
                if guest in self._at_home:
                    return False
            elif guest.plan.layout != home.plan.layout:
                return False
        return True

    # ------------------------------------------------------------------ whole plans

    def _keep(self, found: Fitted | None) -> None:
        """Compare other plans with this one from now on; None: with none."""
        self._best = found
        self._limit = math.inf if found is None else found.outcome.seconds * (1 - LEAST_GAIN)

    def _evaluate(self, chosen: Sequence[Place]) -> None:
        by_call = {**self._others, **{one.call: one for one in chosen}}
        places = self._simulator.shared([by_call[number] for number in range(len(by_call))])
        found = self._fitting.fastest(places, self._limit)
        if found is not None:
            self._keep(found)


def _split(segments: Sequence[_Segment], ranks: RankSet) -> Iterator[RankSet]:
    """The ranks of segments, those of a set apart from others."""
    for each in segments:
        common = each.ranks & ranks
        if common:
            yield common
        if common != each.ranks:
            yield each.ranks ^ common


def _with_moves(seconds: float, moves: Sequence[tuple[float, RankSet]], ranks: RankSet) -> float:
    """Seconds of moves of weights that ranks take part in, with more of them."""
    return seconds + sum([more for more, of_ranks in moves if of_ranks & ranks]) if moves else seconds


def _mesh(one: Place) -> Mesh:
    return one.plan.layout.ranks[0], one.plan.layout.size


def _by_mesh(places: Sequence[Place]) -> dict[Mesh, list[Place]]:
    found: dict[Mesh, list[Place]] = {}
    for one in sorted(places, key=lambda one: one.seconds):
        found.setdefault(_mesh(one), []).append(one)
    return found


def is_first_alike(mesh: Mesh, meshes: Sequence[Mesh], n_ranks: int) -> bool:
    """Whether, of the sets of ranks that are alike but for the numbers of ranks, this is the first.

    At every level of halving the ranks, the second half is only chosen if an earlier set lies within either half, so
    that they differ.

    Args:
        mesh: the set.
        meshes: those that were chosen before.
        n_ranks: number of ranks, a power of two.
    """
    first, size = 0, n_ranks
    while size > mesh[1]:
        half = size // 2
        if mesh[0] >= first + half:
            if not any(first <= other < first + size and n <= half for other, n in meshes):
                return False
            first += half
        size = half
    return True
