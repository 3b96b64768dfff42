"""Dataflow graphs: the order of calls, the edges between them, and the mistakes that are found before anything runs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from reallm.algorithms.graph import Edge, Graph
from reallm.config.args import CriticArgs, ModelArgs
from reallm.errors import ConfigError, DataError, PluginError
from reallm.specs import Algorithm, ModelFunctionCall, WeightUpdate
from tests.helpers.rl_graphs import DISTILL, GRPO, PPO, RAFT


def call(name: str, inputs: str, outputs: str = "", role: str = "model", kind: Any = "inference") -> ModelFunctionCall:
    return ModelFunctionCall(name, role, kind, tuple(inputs.split()), tuple(outputs.split()))


def algorithm(*calls: ModelFunctionCall) -> Algorithm:
    """An algorithm with these calls, whose roles are `model` and `ref`, and `judge` for rewards."""
    return Algorithm("nowhere:Config", calls, {"model": "a:A", "ref": "a:A", "judge": "a:A"})


MODELS: Any = SimpleNamespace(model=ModelArgs(path="m"), ref=ModelArgs(path="m"))
TRAIN = call("train", "tokens", kind="train_step")


def settings(**values: Any) -> Any:
    """What the graphs of `rl_graphs` look at."""
    roles = {"actor": ModelArgs(path="a"), "critic": CriticArgs(path="c"), "ref": ModelArgs(path="a")}
    usual = {"reward": ModelArgs(path=""), "teacher": ModelArgs(path="t"), "beta": 0.0, "baseline": "group"}
    return SimpleNamespace(**{**roles, **usual, "sync_ref_every": None, **values})


def names(graph: Graph) -> list[str]:
    return [one.name for one in graph.calls]


def to_next_step(graph: Graph) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.edges if edge.next_step}


# ---------------------------------------------------------------- order and edges


def test_calls_run_after_those_whose_keys_they_read() -> None:
    graph = [call("train", "tokens rewards"), call("score", "tokens", "rewards"), call("write", "prompts", "tokens")]
    assert names(Graph.from_calls(graph)) == ["write", "score", "train"]


def test_calls_to_a_model_keep_their_order_if_one_of_them_trains_it() -> None:
    graph = Graph.from_calls([call("old", "x", "y"), call("train", "x", kind="train_step"), call("new", "x", "z")])
    assert names(graph) == ["old", "train", "new"]
    assert {(edge.source, edge.target) for edge in graph.edges if edge.key is None} == {
        ("old", "train"), ("train", "new"), ("train", "old"),
    }  # fmt: skip
    assert to_next_step(graph) == {("train", "old")}


def test_calls_to_a_model_that_nothing_changes_are_not_ordered() -> None:
    assert Graph.from_calls([call("one", "x", "y"), call("other", "x", "z")]).edges == ()


def test_a_call_to_a_model_that_is_updated_comes_before_the_update() -> None:
    train = dataclasses.replace(TRAIN, updates=(WeightUpdate("ref"),))
    graph = Graph.from_calls([call("ref_inf", "tokens", "logprobs", role="ref"), train])
    assert Edge("ref_inf", "train") in graph.edges
    assert to_next_step(graph) == {("train", "ref_inf"), ("train", "train")}


def test_every_call_without_an_earlier_one_follows_the_weights_of_the_step_before() -> None:
    """Both generate calls of ReMax, which do not wait for each other."""
    graph = Graph.of(GRPO, settings(baseline="greedy"))
    assert to_next_step(graph) == {("actor_train", "actor_gen"), ("actor_train", "greedy_gen")}


def test_orders_that_follow_from_others_are_not_shown() -> None:
    graph = Graph.of(PPO, settings(reward=CriticArgs(path="r")))
    assert Edge("actor_gen", "actor_train") in graph.edges
    assert all(edge.key is not None for edge in graph.needed_edges)


def test_ppo() -> None:
    graph = Graph.of(PPO, settings(reward=CriticArgs(path="r")))
    assert names(graph) == ["actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train"]
    assert graph.roles == ["actor", "reward", "ref", "critic"]
    assert graph.trained_roles == ["actor", "critic"]
    assert graph.dataset_keys == ["prompt_ids"]
    assert to_next_step(graph) == {("actor_train", "actor_gen"), ("critic_train", "critic_inf")}
    assert {edge.source for edge in graph.edges if edge.target == "critic_train" and edge.key} == {
        "actor_gen", "rew_inf", "ref_inf", "critic_inf",
    }  # fmt: skip
    assert graph.metric_prefixes == {"actor_train": "actor_train", "critic_train": "critic_train"}
    assert graph.objective_calls == []  # nothing to evaluate before something is generated


@pytest.mark.parametrize(
    ("config", "calls"),
    [
        ({}, ["actor_gen", "rew_fn", "actor_train"]),
        ({"reward": ModelArgs(path="r")}, ["actor_gen", "rew_inf", "actor_train"]),
        ({"beta": 0.1}, ["actor_gen", "rew_fn", "ref_inf", "actor_train"]),
        ({"baseline": "greedy"}, ["actor_gen", "rew_fn", "greedy_gen", "greedy_rew", "actor_train"]),
    ],
)
def test_grpo_is_a_function_of_its_settings(config: dict[str, Any], calls: list[str]) -> None:
    graph = Graph.of(GRPO, settings(**config))
    assert names(graph) == calls
    assert ("reward_fn" in graph.all_roles) == ("rew_fn" in calls)
    assert "reward_fn" not in graph.roles


def test_distillation_and_best_of_n() -> None:
    assert names(Graph.of(DISTILL, settings())) == ["actor_gen", "teacher_inf", "actor_train"]
    assert names(Graph.of(RAFT, settings())) == ["actor_gen", "rew_fn", "actor_train"]


def test_an_evaluation_makes_what_measures_and_what_that_needs() -> None:
    graph = Graph.of(PPO, settings(reward=CriticArgs(path="r")))
    assert [one.name for one in graph.eval_calls({"rew_inf"})] == ["actor_gen", "rew_inf"]
    assert graph.eval_calls(set()) == []


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ([call("a", "x", "y"), call("b", "y", "x")], "calls of the algorithm wait for each other: a <- b <- a"),
        ([call("a", "x", "y"), call("b", "x", "y")], "calls 'a' and 'b' of the algorithm both write 'y'"),
        ([call("a", "x"), call("a", "y")], "two calls of the algorithm are named 'a'"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(graph: list[ModelFunctionCall], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Graph.from_calls(graph)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (
            [call("a", "x", "tokenss"), TRAIN],
            "the call 'a' writes 'tokenss', which no call reads; did you mean 'tokens'?",
        ),
        (
            [call("a", "x", "tokens", kind="infer"), TRAIN],
            "the call 'a' has the kind 'infer', but there are 'generate', 'inference', 'train_step', 'reward'; did you "
            "mean 'inference'?",
        ),
        ([call("a", "x")], "no call of the algorithm has the kind 'train_step'"),
        (
            [TRAIN, call("a", "tokens", role="reff")],
            "the call 'a' is to the role 'reff', which has no interface; did you mean 'ref'?",
        ),
        (
            [TRAIN, call("a", "x", role="judge", kind="reward"), call("b", "x", role="judge")],
            "the role 'judge' has both a reward, which has no model, and a call to a model",
        ),
        (
            [dataclasses.replace(call("a", "x", "tokens"), precompute=True), TRAIN],
            "the call 'a' cannot be precomputed: the weights of its role change",
        ),
        (
            [
                dataclasses.replace(call("a", "x", "tokens", role="ref"), precompute=True),
                dataclasses.replace(TRAIN, updates=(WeightUpdate("ref"),)),
            ],
            "the call 'a' cannot be precomputed: the weights of its role change",
        ),
        (
            [dataclasses.replace(call("a", "x", "tokens"), updates=(WeightUpdate("ref"),)), TRAIN],
            "the call 'a' updates 'ref', but does not train",
        ),
        (
            [dataclasses.replace(TRAIN, updates=(WeightUpdate("model"),))],
            "the call 'train' updates 'model', which is not a role with a model that is not trained",
        ),
        (
            [call("a", "x", role="ref"), dataclasses.replace(TRAIN, updates=(WeightUpdate("ref", every=0),))],
            "the call 'train' updates 'ref' with every=0 and eta=1.0; every must be at least 1",
        ),
        (
            [call("a", "x", role="ref"), dataclasses.replace(TRAIN, updates=(WeightUpdate("ref", eta=1.5),))],
            "the call 'train' updates 'ref' with every=1 and eta=1.5; every must be at least 1, eta above 0",
        ),
    ],
)
def test_a_call_that_cannot_be_is_refused(calls: list[ModelFunctionCall], message: str) -> None:
    with pytest.raises(PluginError) as error:
        Graph.of(algorithm(*calls), MODELS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_role_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no field 'ref' with the ModelArgs of the role 'ref'"):
        Graph.of(algorithm(TRAIN, call("a", "x", role="ref")), SimpleNamespace(model=ModelArgs(path="m")))


def test_a_key_that_nothing_writes_is_refused() -> None:
    graph = Graph.from_calls([call("a", "prompts", "answers"), call("train", "answers rewards", kind="train_step")])
    graph.check_producers(("prompts", "rewards"), "mine")
    with pytest.raises(DataError) as error:
        graph.check_producers(("prompts",), "mine")
    assert str(error.value) == (
        "the call 'train' needs 'rewards', which dataset 'mine' does not give; it gives prompts: choose another "
        "dataset.name"
    )
