"""Steps that four ranks really make: each call ends when the simulator says, by clocks that only calls move on.

The clock of a rank moves on by the given time of each of its calls. A call begins when the last of its ranks is there,
and outputs carry the moment at which they were written. So nothing depends on how busy the machine is.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray
from reallm.parallel.layout import Layout
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.simulator import Simulator
from reallm.specs import ModelFunctionCall
from tests.algorithms.three_roles import batch_of
from tests.helpers.ranks import on_ranks
from tests.planning.given_costs import GivenCosts, machine

N_CALLS, SEEDS = 12, range(5)


class Clock:
    """The time of this rank, and when its calls have ended."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: dict[str, float] = {}


class Takes:
    """Meets the other ranks of its call, takes a given time, and writes when it has ended."""

    def __init__(self, call: ModelFunctionCall, ranks: tuple[int, ...], seconds: float, clock: Clock) -> None:
        self._call, self._ranks, self._seconds, self._clock = call, ranks, seconds, clock

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        store: Any = dist.distributed_c10d._get_default_store()
        written = [float(batch[key].max()) for key in self._call.inputs if key != "prompt_ids"]
        keys = {rank: f"{context.seed} {self._call.name} {rank}" for rank in self._ranks}
        store.set(keys[dist.get_rank()], repr(max(self._clock.now, *written, 0.0)))
        store.wait(list(keys.values()), timedelta(seconds=240))
        self._clock.now = max(float(store.get(key)) for key in keys.values()) + self._seconds
        self._clock.ends[self._call.name] = self._clock.now
        n = n_samples(batch)
        return NamedArray(**{self._call.name: torch.full((n,), self._clock.now, dtype=torch.float64)}).with_metadata(
            seqlens={self._call.name: [(1,)] * n}, ids=batch.metadata["ids"]
        )


def drawn(seed: int) -> tuple[Graph, dict[str, Layout], dict[str, float]]:
    """A random graph, the ranks of its calls, and their times."""
    draw = random.Random(seed)
    calls: list[ModelFunctionCall] = []
    for number in range(N_CALLS):
        earlier = [call.name for call in calls]
        keys = draw.sample(earlier, min(len(earlier), draw.randrange(3)))
        calls.append(
            ModelFunctionCall(f"call{number}", f"call{number}", "reward", (*keys, "prompt_ids"), (f"call{number}",))
        )
    layouts = {call.name: ranks_of(draw) for call in calls}
    return Graph.from_calls(calls), layouts, {call.name: draw.uniform(1.0, 5.0) for call in calls}


def ranks_of(draw: random.Random) -> Layout:
    n = draw.choice([1, 1, 2, 3, 4])
    return Layout.parse(f"dp{n}@{','.join(map(str, sorted(draw.sample(range(4), n))))}")


def real_ends(rank: int) -> list[dict[str, float]]:
    """When this rank's calls end, in a step of each graph."""
    found = []
    for seed in SEEDS:
        (graph, layouts, seconds), clock = drawn(seed), Clock()
        interfaces = {
            call.name: Takes(call, layouts[call.name].ranks, seconds[call.name], clock) for call in graph.calls
        }
        executor = GraphExecutor(graph, {}, interfaces, Placement.from_layouts(graph, layouts, 4))
        executor.train(batch_of(1), CallContext(None, seed, 1, 1, 40, True, {}))  # type: ignore[arg-type]
        found.append(clock.ends)
    return found


def simulated(seed: int) -> list[dict[str, float]]:
    """When the calls of each rank end."""
    graph, layouts, seconds = drawn(seed)
    costs = GivenCosts(seconds, exponent=dict.fromkeys(seconds, 0.0))
    plan = ExecutionPlan({name: CallPlan(layout) for name, layout in layouts.items()})
    spans = Simulator(graph, costs, machine(4)).simulate(plan).spans
    return [{one.name: one.end for one in spans if (one.rank, one.kind) == (rank, "call")} for rank in range(4)]


def test_every_call_ends_when_the_simulator_says() -> None:
    by_rank = on_ranks(4, real_ends)
    for number, seed in enumerate(SEEDS):
        for found, expected in zip(by_rank, simulated(seed), strict=True):
            assert found[number] == pytest.approx(expected, rel=1e-12)
