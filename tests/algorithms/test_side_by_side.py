"""Calls on disjoint ranks are computed at the same time, and messages are on their way meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

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

RANKS = {"first": "dp1", "left": "dp1@1", "middle": "dp1@2", "right": "dp1@3", "low": "dp2", "high": "dp2@2-3"}
READS = {"first": ("prompt_ids",), "left": ("first",), "middle": ("first",), "right": ("first",)}
MEETINGS = [{"left", "middle", "right"}, {"low", "high"}]
"""Calls that go on until all of them have begun."""


def calls() -> list[ModelFunctionCall]:
    inner = [ModelFunctionCall(name, name, "reward", keys, (name,)) for name, keys in READS.items()]
    outer = [ModelFunctionCall(name, name, "reward", ("left", "right"), (name,)) for name in ("low", "high")]
    return [*inner, *outer]


class Meets:
    """Writes ones, after all calls of its meeting have begun."""

    def __init__(self, name: str) -> None:
        self._name = name

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        store: Any = dist.distributed_c10d._get_default_store()
        store.set(f"{context.step} {self._name} {dist.get_rank()}", "")
        meeting = next((names for names in MEETINGS if self._name in names), set())
        here = [(name, rank) for name in meeting for rank in Layout.parse(RANKS[name]).ranks]
        store.wait([f"{context.step} {name} {rank}" for name, rank in here], timedelta(seconds=240))
        n = n_samples(batch)
        return NamedArray(**{self._name: torch.ones(n)}).with_metadata(
            seqlens={self._name: [(1,)] * n}, ids=batch.metadata["ids"]
        )


def steps(rank: int) -> list[list[Span]]:
    graph = Graph.from_calls(calls())
    placement = Placement.from_layouts(graph, {name: Layout.parse(text) for name, text in RANKS.items()}, 4)
    executor = GraphExecutor(graph, {}, {name: Meets(name) for name in RANKS}, placement)
    found = []
    for step in (1, 2):
        executor.train(batch_of(step), context(step, {}))
        found.append(executor.spans())
    return found


def test_calls_on_disjoint_ranks_are_computed_at_the_same_time() -> None:
    by_rank = on_ranks(4, steps)
    assert by_rank[1:] == by_rank[:1] * 3  # all ranks know what all have done
    for spans in by_rank[0]:
        by_call = {name: [span for span in spans if (span.kind, span.name) == ("call", name)] for name in RANKS}
        assert {name: {span.rank for span in found} for name, found in by_call.items()} == {
            "first": {0}, "left": {1}, "middle": {2}, "right": {3}, "low": {0, 1}, "high": {2, 3}
        }  # fmt: skip
        for meeting in MEETINGS:
            met = [span for name in meeting for span in by_call[name]]
            assert max(span.start for span in met) < min(span.end for span in met)
        assert by_call["first"][0].end < min(span.start for span in by_call["left"])
        received = {(span.rank, span.name): span.bytes for span in spans if span.kind == "data"}
        assert received == {
            (1, "first to left"): 20, (2, "first to middle"): 20, (3, "first to right"): 20,
            (0, "left to low"): 20, (0, "right to low"): 20, (1, "right to low"): 20,
            (2, "left to high"): 20, (3, "left to high"): 20, (2, "right to high"): 20,
        }  # fmt: skip
