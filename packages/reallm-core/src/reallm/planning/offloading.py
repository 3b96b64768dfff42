"""`Fitting`: the outcome of layouts with those models offloaded that have to be, for the plan to fit into memory.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from reallm.algorithms.graph import Graph
from reallm.planning.execution_plan import ExecutionPlan
from reallm.planning.places import Place
from reallm.planning.rank_loads import Copies, RankLoads
from reallm.planning.simulator import Outcome, Simulator

MAX_KEPT = 200_000
"""Plans whose outcome is remembered."""
MISFIT = 2.0
"""How many times as slow as it is a plan counts at least if it does not fit into memory."""


class Fitted(NamedTuple):
    """A plan with what is offloaded, and what it leads to."""

    bare: tuple[Place, ...]
    """The calls as they were given."""
    places: tuple[Place, ...]
    """The calls with what is offloaded."""
    outcome: Outcome
    excess: float
    """By what share of the memory of a rank the plan is too large; 0 if it fits."""

    @property
    def score(self) -> float:
        """What a search makes small: the time of a step, twice or more of it if memory is lacking."""
        return self.outcome.seconds * (MISFIT + 4.0 * self.excess if self.excess else 1.0)

    def plan(self, graph: Graph) -> ExecutionPlan:
        """The plan, with what is offloaded."""
        return ExecutionPlan({call.name: one.plan for call, one in zip(graph.calls, self.places, strict=True)})


class Fitting:
    """Evaluates layouts of all calls, each with the offloads that it needs to fit into memory, and remembers them.

    A plan that fits is as fast without offloads. Otherwise each copy of a model may be offloaded after its last call.
    Copies come back just before their calls, unless `with_prefetches` is asked for the fastest plan.

    Args:
        simulator: the simulator.
        given: the calls, by number, that are offloaded or not as given.
    """

    def __init__(self, simulator: Simulator, given: Sequence[int] = ()) -> None:
        self._simulator, self._given = simulator, frozenset(given)
        self.loads = RankLoads(simulator, given)
        """The least times of ranks."""
        self._known: dict[tuple[tuple[Place, ...], bool], Fitted] = {}
        self._bare: dict[tuple[Place, ...], Fitted] = {}
        self._offloaded_places: dict[Place, Place] = {}
        self.n_evaluated = 0
        """Number of plans that have been simulated."""

    def fitted(self, places: Sequence[Place], *, exact: bool = False) -> Fitted:
        """The layouts with offloads, if these are needed.

        Args:
            places: the calls, offloaded only where that is given.
            exact: whether to try all sets of copies, for the fastest that fits; otherwise one after another is kept on
                the device while there is room.
        """
        key = (tuple(places), exact)
        found = self._known.get(key)
        if found is None:
            found = self.without_offloads(key[0])
            if found.excess:
                fastest = self.fastest(key[0], math.inf) if exact else None
                found = fastest or self._with_offloads(key[0], found)
            if len(self._known) > MAX_KEPT:
                self._known.clear()
            self._known[key] = found
        return found

    def fitted_below(self, places: Sequence[Place], limit: float) -> Fitted | None:
        """As `fitted`, if its score is below a limit; layouts that are too slow are not simulated.

        Args:
            places: the calls, offloaded only where that is given.
            limit: the score that it has to be below.
        """
        busy, fitting = self.loads.least_seconds(places)
        if min(fitting, MISFIT * busy) >= limit:
            return None
        found = self.without_offloads(places)
        if found.excess:
            seconds = found.outcome.seconds
            if min(max(seconds, fitting), MISFIT * seconds) >= limit:
                return None
            found = self.fitted(places)
        return found if found.score < limit else None

    def without_offloads(self, places: Sequence[Place]) -> Fitted:
        """The layouts as they are, whether they fit or not. No offload makes them faster."""
        key = tuple(places)
        found = self._bare.get(key)
        if found is None:
            if len(self._bare) > MAX_KEPT:
                self._bare.clear()
            found = self._bare[key] = self._outcome(key)
        return found

    def with_prefetches(self, found: Fitted) -> Fitted:
        """The plan with copies that come back beside the call before, where that is faster and there is room."""
        offloaded = {one.copy for one in found.places if one.offload}
        for number, one in enumerate(found.places):
            is_shared = self._simulator.base_home(number, found.places) is not None
            if found.excess or one.copy not in offloaded or number in self._given or is_shared:
                continue
            places = list(found.places)
            places[number] = self._simulator.place(number, dataclasses.replace(one.plan, prefetch=True))
            tried = self._outcome(tuple(places))
            if not tried.excess and tried.outcome.seconds < found.outcome.seconds:
                found = tried._replace(bare=found.bare)
        return found

    def _outcome(self, places: tuple[Place, ...]) -> Fitted:
        self.n_evaluated += 1
        return self._fitted(places, self._simulator.outcome(places))

    def _fitted(self, places: tuple[Place, ...], outcome: Outcome) -> Fitted:
        return Fitted(places, places, outcome, self._simulator.machine.excess(outcome.memory, outcome.host_memory))

    def fastest(self, places: Sequence[Place], limit: float) -> Fitted | None:
        """The layouts with those offloads, of all sets of copies, with which they are the fastest and fit into memory.

        Args:
            places: the calls, offloaded only where that is given.
            limit: seconds that it has to be faster than.

        Returns:
            None: there are none.
        """
        bare, calls = tuple(places), self._movable(places)
        best, done = None, list[Copies]()
        for least, copies in self.loads.offloads(places):
            if least >= limit:
                break
            chosen = [number for number in calls if places[number].copy in copies]
            # more than a set that fits, or is too slow, only takes more time
            if len(chosen) < len(copies) or any(smaller <= copies for smaller in done):
                continue
            tried = self._faster(self._offloaded(bare, chosen), limit)
            if tried is None or not tried.excess:
                done.append(copies)
            if tried is not None and not tried.excess:
                best, limit = tried._replace(bare=bare), tried.outcome.seconds
        return best

    def _faster(self, places: tuple[Place, ...], limit: float) -> Fitted | None:
        """The plan, if it takes fewer seconds than a limit."""
        self.n_evaluated += 1
        seconds = self._simulator.seconds(places)
        return None if seconds >= limit else self._fitted(places, Outcome(seconds, *self._simulator.memory(places)))

    def _movable(self, places: Sequence[Place]) -> list[int]:
        """The calls after which a copy may be offloaded: of each copy the last one to the role whose model it is."""
        base_home = self._simulator.base_home
        last = {
            one.copy: number for number, one in enumerate(places) if one.copy >= 0 and base_home(number, places) is None
        }
        return [number for number in last.values() if number not in self._given]

    def _may_fit(self, places: Sequence[Place]) -> bool:
        return self._simulator.least_memory(places) <= self._simulator.machine.memory

    def _with_offloads(self, places: tuple[Place, ...], without: Fitted) -> Fitted:
        """Keep copies on the device while there is room, the largest first."""
        calls = self._movable(places)
        best = min(without, self._outcome(self._offloaded(places, calls)), key=lambda one: one.excess)
        moved = list(calls)
        for number in sorted(calls, key=lambda number: -places[number].memory.kept) if not best.excess else ():
            fewer = [one for one in moved if one != number]
            offloaded = self._offloaded(places, fewer)
            if self._may_fit(offloaded) and self._simulator.machine.fits(*self._simulator.memory(offloaded)):
                moved = fewer
        return (best if moved == calls else self._outcome(self._offloaded(places, moved)))._replace(bare=places)

    def _offloaded(self, places: tuple[Place, ...], calls: Sequence[int]) -> tuple[Place, ...]:
        return tuple(self._with_offload(number, one) if number in calls else one for number, one in enumerate(places))

    def _with_offload(self, call: int, one: Place) -> Place:
        if one not in self._offloaded_places:
            plan = dataclasses.replace(one.plan, offload=True)
            self._offloaded_places[one] = self._simulator.place(call, plan)
        return self._offloaded_places[one]
