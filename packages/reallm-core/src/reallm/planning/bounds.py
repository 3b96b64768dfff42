"""Lower bounds of the time of a step: what no plan made of some candidates can be faster than. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reallm.algorithms.graph import Graph
from reallm.planning.places import Place
from reallm.planning.steps import calls_of_steps


@dataclass(frozen=True)
class Bounds:
    """The least that calls take, whatever the plan."""

    order: tuple[int, ...]
    """Numbers of the calls of a step, in the order in which ranks walk through them."""
    seconds: Mapping[int, float]
    """The least seconds of each call."""
    work: Mapping[int, float]
    """The least seconds of each call times the ranks that it takes."""
    waits_for: Mapping[int, tuple[int, ...]]
    """The calls whose outputs a call reads."""
    n_ranks: int

    @classmethod
    def of(cls, graph: Graph, places: Mapping[int, Sequence[Place]], n_ranks: int) -> Bounds:
        """The bounds of plans that are made of some places of each call."""
        numbers = {call.name: number for number, call in enumerate(graph.calls)}
        order = tuple(numbers[call.name] for call in calls_of_steps(graph))
        waits: dict[int, set[int]] = {number: set() for number in order}
        for edge in graph.edges:
            source, target = numbers[edge.source], numbers[edge.target]
            if edge.key is not None and not edge.next_step and source in waits and target in waits:
                waits[target].add(source)
        return cls(
            order,
            {number: min(one.seconds for one in places[number]) for number in order},
            {number: min(one.seconds * one.ranks.bit_count() for one in places[number]) for number in order},
            {number: tuple(sorted(found)) for number, found in waits.items()},
            n_ranks,
        )

    @property
    def step(self) -> float:
        """The larger of two bounds: each call as fast as can be, on the longest chain of calls that wait for each
        other; and the least work of all calls, spread over all ranks.
        """
        chain = max([self.seconds[call] + self.rest[call] for call in self.order], default=0.0)
        return max(chain, self.spread(0.0, 0))

    @cached_property
    def rest(self) -> Mapping[int, float]:
        """The least seconds from the end of each call to the end of the step: of calls that wait for it."""
        found: dict[int, float] = {}
        for call in reversed(self.order):
            after = [other for other in found if call in self.waits_for[other]]
            found[call] = max([self.seconds[other] + found[other] for other in after], default=0.0)
        return found

    def spread(self, busy: float, n_done: int) -> float:
        """The least seconds of a step, as long as its work takes if all ranks share it.

        Args:
            busy: the moments at which ranks are free after the first calls of the order, of all ranks together.
            n_done: number of those calls.
        """
        return (busy + self._work_from[n_done]) / self.n_ranks

    @cached_property
    def _work_from(self) -> list[float]:
        """The least work of the calls of the order from each one on."""
        found = [0.0]
        for call in reversed(self.order):
            found.append(found[-1] + self.work[call])
        return found[::-1]
