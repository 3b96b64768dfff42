"""The order of an algorithm's calls."""

from __future__ import annotations

import pytest

from reallm.algorithms.graph import Graph
from reallm.errors import PluginError
from reallm.specs import ModelFunctionCall


def call(name: str, inputs: str, outputs: str = "") -> ModelFunctionCall:
    return ModelFunctionCall(name, "model", "inference", tuple(inputs.split()), tuple(outputs.split()))


def test_calls_run_after_those_whose_keys_they_read() -> None:
    graph = [call("train", "tokens rewards"), call("score", "tokens", "rewards"), call("write", "prompts", "tokens")]
    assert [one.name for one in Graph.from_calls(graph).calls] == ["write", "score", "train"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ([call("a", "x", "y"), call("b", "y", "x")], "wait for each other"),
        ([call("a", "x", "y"), call("b", "x", "y")], "calls 'a' and 'b' of the algorithm both write 'y'"),
        ([call("a", "x"), call("a", "y")], "two calls of the algorithm are named 'a'"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(graph: list[ModelFunctionCall], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Graph.from_calls(graph).calls
