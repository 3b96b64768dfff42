"""Outputs of calls that are sent from rank to rank, short and long, and errors in their place."""

from __future__ import annotations

from typing import Any

import torch

from reallm.algorithms.exchange import FIRST_PART, Exchange, broadcast
from reallm.algorithms.graph import Graph
from reallm.algorithms.messenger import Messenger
from reallm.algorithms.placement import Placement
from reallm.algorithms.timeline import Timeline
from reallm.data.namedarray import NamedArray
from reallm.errors import NonFiniteError
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall
from tests.helpers.ranks import on_ranks

SIZES = [1, FIRST_PART // 8, FIRST_PART, 50_000]
WRITES = ModelFunctionCall("writes", "writes", "reward", ("prompt_ids",), ("scores",))
READS = ModelFunctionCall("reads", "reads", "reward", ("scores",), ("others",))
GRAPH = Graph.from_calls([WRITES, READS])
PLACEMENT = Placement.from_layouts(GRAPH, {"writes": Layout(), "reads": Layout.parse("dp1@1")}, 2)
SAMPLES = NamedArray(prompt_ids=torch.arange(3)).with_metadata(
    seqlens={"prompt_ids": [[1], [2]]}, ids=["a", "b"], columns=[{"answer": "x" * FIRST_PART}, {"answer": "y"}]
)


def outputs(n: int) -> NamedArray:
    scores = torch.arange(n + 2, dtype=torch.float64)
    return NamedArray(scores=scores).with_metadata(
        seqlens={"scores": [[n], [2]]},
        ids=["a", "b"],
        weights_versions={"actor": 3},
        columns=SAMPLES.metadata["columns"],
    )


def exchanged(rank: int) -> tuple[list[NamedArray], str, list[NamedArray]]:
    """What rank 1 receives of rank 0, an error that it receives, and what both get by broadcasts."""
    messenger, timeline = Messenger(rank), Timeline(rank)

    def received(content: Any) -> Any:
        exchange = Exchange(PLACEMENT, GRAPH.calls, messenger, timeline, SAMPLES)
        if rank == 0:
            exchange.send("writes", content)
            messenger.finish()
            return None
        found, errors = exchange.receive("reads")
        return errors["writes"] if errors else found["writes"][0]

    found = [received(outputs(n)) for n in SIZES]
    error = str(received(NonFiniteError("é is not a number" * FIRST_PART)))
    return found, error, [broadcast(outputs(n) if rank == 1 else SAMPLES, source=1) for n in SIZES]


def test_outputs_and_errors_of_any_size_arrive_without_what_is_known_already() -> None:
    (_, _, on_rank0), (found, error, on_rank1) = on_ranks(2, exchanged)
    assert error == "é is not a number" * FIRST_PART
    for n, one in zip(SIZES, found, strict=True):
        assert one == outputs(n).with_metadata(ids=None, columns=None)
    assert on_rank0 == on_rank1 == [outputs(n) for n in SIZES]
