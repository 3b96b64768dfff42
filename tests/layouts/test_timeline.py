"""What four ranks do, and when, is what the simulator says, given the time of each call.

Calls take given times, and have no models. The fastest of some steps counts: what else the machine does delays others.
A call begins once all of its ranks are free and what it reads is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.timeline import Span
from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Group
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.simulator import Simulator
from tests.algorithms.three_roles import batch_of, context
from tests.helpers.ranks import on_ranks
from tests.planning.given_costs import GivenCosts, machine
from tests.planning.test_real_steps import drawn

WITHIN_S = 0.020
N_STEPS = 5


class Sleeps:
    """Takes a given time, from when the last of its ranks is there, and writes ones."""

    def __init__(self, name: str, group: Group | None, seconds: float) -> None:
        self._name, self._group, self._seconds = name, group, seconds

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        begun = torch.tensor(time.monotonic(), dtype=torch.float64)  # one clock for all processes of a machine
        if self._group is not None:
            dist.all_reduce(begun, dist.ReduceOp.MAX, group=self._group)
        time.sleep(max(0.0, begun.item() + self._seconds - time.monotonic()))
        n = n_samples(batch)
        return NamedArray(**{self._name: torch.ones(n)}).with_metadata(
            seqlens={self._name: [(1,)] * n}, ids=batch.metadata["ids"]
        )


def short_calls(seed: int) -> tuple[Graph, dict[str, Layout], dict[str, float]]:
    """A random graph, the ranks of its calls, and their times, of 30 to 170 ms."""
    graph, layouts, seconds = drawn(seed)
    return graph, layouts, {name: value / 30 for name, value in seconds.items()}


def measured(rank: int, seed: int) -> list[list[Span]]:
    """The spans of some steps, after one that connects the ranks."""
    graph, layouts, seconds = short_calls(seed)
    sets = {layout.ranks for layout in layouts.values() if layout.size > 1}
    groups = {ranks: dist.new_group(list(ranks)) for ranks in sorted(sets)}  # all ranks make all, in one order
    interfaces = {name: Sleeps(name, groups.get(layouts[name].ranks), seconds[name]) for name in layouts}
    executor = GraphExecutor(graph, {}, interfaces, Placement.from_layouts(graph, layouts, 4))
    found = []
    for step in range(N_STEPS + 1):
        dist.barrier()
        executor.train(batch_of(step), context(step, {}))
        found.append(executor.spans())
    return found[1:]


def simulated(seed: int) -> dict[tuple[int, str], float]:
    """When each call ends on each of its ranks, after the beginning of the step."""
    graph, layouts, seconds = short_calls(seed)
    costs = GivenCosts(seconds, exponent=dict.fromkeys(seconds, 0.0))
    plan = ExecutionPlan({name: CallPlan(layout) for name, layout in layouts.items()})
    return ends(Simulator(graph, costs, machine(4)).simulate(plan).spans)


def ends(spans: Sequence[Span]) -> dict[tuple[int, str], float]:
    start = min(span.start for span in spans)
    return {(span.rank, span.name): span.end - start for span in spans if span.kind == "call"}


@pytest.mark.parametrize("seed", range(5))
def test_every_call_ends_when_the_simulator_says(seed: int) -> None:
    steps = [ends(spans) for spans in on_ranks(4, measured, seed)[0]]
    fastest = {name: min(step[name] for step in steps) for name in steps[0]}
    assert fastest == pytest.approx(simulated(seed), abs=WITHIN_S)
