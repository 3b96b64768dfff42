"""Lower bounds of the time of a step: what no plan made of some candidates can be faster than. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        return self.completed({}, 0.0, 0)

    def completed(self, ended: Mapping[int, float], busy: float, n_done: int) -> float:
        """A lower bound of the step once the first calls of the order are placed.

        Args:
            ended: when each of them ends, at least.
            busy: the moments at which ranks are free, of all ranks together.
            n_done: number of calls that are placed.
        """
        ends = dict(ended)
        work = busy
        for number in self.order[n_done:]:
            start = max([ends[other] for other in self.waits_for[number]], default=0.0)
            ends[number] = start + self.seconds[number]
            work += self.work[number]
        return max(max(ends.values(), default=0.0), work / self.n_ranks)
