"""What calls are told of the calls before them in the same step, and when models come back from host memory."""

from __future__ import annotations

from typing import Any

import torch

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.algorithms.timeline import Span
from reallm.config.args import ModelArgs
from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall
from tests.algorithms.three_roles import ALGORITHM, Case, batch_of, context, make_roles
from tests.helpers.tiny_config import TINY


class TwiceTrained:
    """Notes the versions of the weights that it trains, and of those that its batch was made with."""

    optimizer_steps = 2

    def __init__(self) -> None:
        self.present: list[int] = []
        self.made_with: list[Any] = []
        self.limits: list[int] = []

    def train_step(self, engine: Any, batch: NamedArray, context: CallContext) -> dict[str, float]:
        self.limits.append(context.max_tokens_per_microbatch)
        self.present.append(context.weights_versions["actor"])
        self.made_with.append(batch.metadata.get("weights_versions"))
        return {"tokens": 1.0}

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        self.limits.append(context.max_tokens_per_microbatch)
        n = n_samples(batch)
        return NamedArray(lengths=torch.ones(n)).with_metadata(
            seqlens={"lengths": [[1]] * n}, ids=batch.metadata["ids"]
        )


def executed(args: ModelArgs, max_tokens: dict[str, int] | None = None) -> TwiceTrained:
    """The interface after a step in which the actor is trained, generates, and is trained again."""
    graph = Graph.from_calls(
        (
            ModelFunctionCall("warm_up", "actor", "train_step", ("prompt_ids",)),
            ModelFunctionCall("gen", "actor", "generate", ("prompt_ids",), ("lengths",)),
            ModelFunctionCall("train", "actor", "train_step", ("prompt_ids", "lengths")),
        )
    )
    model, interface = ReaLModel(TINY, seed=0), TwiceTrained()
    roles = {"actor": Role(model, None, None, args, model.dtype)}
    here = Layout()
    layouts = {call.name: here for call in graph.calls}
    placement = Placement(graph, 1, layouts, {"actor": here}, max_tokens=max_tokens or {})
    executor = GraphExecutor(graph, roles, {"actor": interface}, placement)
    executor.train(batch_of(1), context(1, {"actor": 5}))
    return interface


def test_after_a_train_call_the_weights_are_newer_in_the_same_step() -> None:
    interface = executed(ModelArgs(path="x"))
    assert interface.present == [5, 7]
    assert interface.made_with == [None, {"actor": 7}]


def test_a_call_is_told_its_limit_on_tokens_or_that_of_its_role() -> None:
    assert executed(ModelArgs(path="x")).limits == 3 * [context(1, {}).max_tokens_per_microbatch]
    args = ModelArgs(path="x", max_tokens_per_microbatch=7)
    assert executed(args).limits == [7, 7, 7]
    assert executed(args, {"train": 5}).limits == [7, 7, 5]


def second_step(prefetched: frozenset[str]) -> tuple[dict[str, float], dict[tuple[str, str], Span]]:
    """The metrics and the spans of a step after another one, with a reference that is offloaded."""
    graph = Graph.from_calls(ALGORITHM.calls(None))
    layouts = {call.name: Layout() for call in graph.calls}
    placement = Placement.from_layouts(graph, layouts, 1, frozenset({"ref_inf"}), prefetched)
    interfaces = {role: ALGORITHM.interface_class(role)() for role in graph.all_roles}
    executor = GraphExecutor(graph, make_roles(Case("alone"), placement), interfaces, placement)
    executor.train(batch_of(1), context(1, {}))
    metrics = executor.train(batch_of(2), context(2, {}))
    exact = {name: value for name, value in metrics.items() if not name.endswith(("_s", "_gib"))}
    return exact, {(span.kind, span.name): span for span in executor.spans()}


def test_a_prefetched_copy_comes_back_beside_the_call_before() -> None:
    expected, late = second_step(frozenset())
    metrics, early = second_step(frozenset({"ref_inf"}))
    assert metrics == expected
    assert late["reload", "ref_inf"].start >= late["call", "actor_gen"].end
    assert early["reload", "ref_inf"].start <= early["call", "actor_gen"].start
    assert early["reload", "ref_inf"].bytes == early["offload", "ref_inf"].bytes
