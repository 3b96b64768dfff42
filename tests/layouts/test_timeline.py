"""What four ranks do, and when, is what follows from the time of each call: calls run side by side.

For a quiet machine. Calls take given times, and have no models. A call begins once all of its ranks are free and what
it reads is there.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import Any

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
from reallm.specs import ModelFunctionCall
from tests.algorithms.three_roles import batch_of, context
from tests.helpers.ranks import on_ranks

WITHIN_S = 0.020
N_CALLS = 10


class Sleeps:
    """Meets the other ranks of its call, takes a given time, and writes ones."""

    def __init__(self, name: str, ranks: tuple[int, ...], seconds: float) -> None:
        self._name, self._ranks, self._seconds = name, ranks, seconds

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        store: Any = dist.distributed_c10d._get_default_store()
        keys = {rank: f"{context.step} {self._name} {rank}" for rank in self._ranks}
        store.set(keys[dist.get_rank()], "")
        store.wait(list(keys.values()), timedelta(seconds=30))
        time.sleep(self._seconds)
        n = n_samples(batch)
        return NamedArray(**{self._name: torch.ones(n)}).with_metadata(
            seqlens={self._name: [(1,)] * n}, ids=batch.metadata["ids"]
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
    return Graph.from_calls(calls), layouts, {call.name: draw.uniform(0.03, 0.15) for call in calls}


def ranks_of(draw: random.Random) -> Layout:
    n = draw.choice([1, 1, 2, 3, 4])
    return Layout.parse(f"dp{n}@{','.join(map(str, sorted(draw.sample(range(4), n))))}")


def measured(rank: int, seed: int) -> list[Span]:
    """The spans of the second of two steps: the first one connects the ranks."""
    graph, layouts, seconds = drawn(seed)
    interfaces = {call.name: Sleeps(call.name, layouts[call.name].ranks, seconds[call.name]) for call in graph.calls}
    executor = GraphExecutor(graph, {}, interfaces, Placement.from_layouts(graph, layouts, 4))
    for step in (1, 2):
        dist.barrier()
        executor.train(batch_of(step), context(step, {}))
    return executor.spans()


def expected_ends(seed: int) -> dict[str, float]:
    """When each call ends, after the beginning of the step."""
    graph, layouts, seconds = drawn(seed)
    free, ends = dict.fromkeys(range(4), 0.0), dict[str, float]()
    for call in graph.calls:
        ranks = layouts[call.name].ranks
        start = max(*(free[rank] for rank in ranks), *(ends.get(key, 0.0) for key in call.inputs))
        ends[call.name] = start + seconds[call.name]
        free |= dict.fromkeys(ranks, ends[call.name])
    return ends


@pytest.mark.parametrize("seed", range(5))
def test_every_call_ends_when_it_should(seed: int) -> None:
    spans, ends = on_ranks(4, measured, seed)[0], expected_ends(seed)
    start = min(span.start for span in spans)
    for span in spans:
        if span.kind == "call":
            assert span.end - start == pytest.approx(ends[span.name], abs=WITHIN_S), span
    assert {span.name for span in spans if span.kind == "call"} == set(ends)
