"""Which settings of proximal policy optimisation go together, its graph, and what is said of mistakes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from reallm.algorithms.graph import Graph
from reallm.algorithms.ppo.config import PPOArgs, PPOConfig, ValueModelArgs
from reallm.algorithms.ppo.graph import graph
from reallm.config.args import ModelArgs, ReferenceArgs, RewardArgs, SamplingArgs
from reallm.config.load import describe, load
from reallm.errors import ConfigError
from reallm.experiments.preflight.checks import check_roles


@dataclass(frozen=True)
class Data:
    """Stands in for the configuration of a dataset."""

    train_path: str = "rows.jsonl"
    valid_path: str | None = None
    name: str = "prompt"
    train_bs_n_seqs: int = 6


MODEL, FUNCTION = RewardArgs(path="reward-model"), RewardArgs(functions=["tests.rewards:accuracy"])
SIX = ["actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train"]


def config(ppo: dict[str, Any] | None = None, **settings: Any) -> PPOConfig:
    defaults = {"actor": ModelArgs(path="model"), "dataset": Data(), "reward": MODEL}
    return PPOConfig(ppo=PPOArgs(**(ppo or {})), **{**defaults, **settings})


def calls(ppo: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    return [call.name for call in graph(config(ppo, **settings))]


def test_the_graph_has_what_the_settings_need() -> None:
    assert calls() == SIX
    assert calls(reward=FUNCTION) == ["actor_gen", "rew_fn", *SIX[2:]]
    assert calls(reward=RewardArgs(path="x", functions=["tests.rewards:accuracy"]))[1:3] == ["rew_fn", "rew_inf"]
    assert calls({"kl_ctl": 0.0}) == [name for name in SIX if name != "ref_inf"]
    assert calls({"old_logprobs": "inference"}) == [*SIX[:4], "actor_inf", *SIX[4:]]


def test_the_value_after_an_answer_is_computed_where_answers_that_were_cut_go_on() -> None:
    by_name = {call.name: call for call in graph(config({"truncated_reward": "bootstrap"}))}
    assert by_name["critic_inf"].outputs == ("values", "end_values")
    assert "end_values" in by_name["critic_train"].inputs


def test_models_that_are_not_named_are_the_actor_and_the_reward_model() -> None:
    assert (config().ref.path, config().critic.path) == ("model", "reward-model")
    assert config(reward=FUNCTION).critic.path == "model"
    named = config(ref=ReferenceArgs(path="ref"), critic=ValueModelArgs(path="critic"))
    assert (named.ref.path, named.critic.path) == ("ref", "critic")


def test_keys_of_nested_groups_are_read_and_written(tmp_path: Any) -> None:
    arguments = ["actor.path=m", "reward.path=r", "dataset.train_path=rows.jsonl", "ppo.gen.max_new_tokens=7"]
    found = load(PPOConfig, [], [*arguments, "ppo.kl_ctl=0.02"])
    (file := tmp_path / "run.yaml").write_text(found.to_yaml(), encoding="utf-8")
    again = load(PPOConfig, [file], ["ppo.gen.top_k=3"]).build()
    assert (again.ppo.gen.max_new_tokens, again.ppo.gen.top_k, again.ppo.kl_ctl) == (7, 3, 0.02)
    assert describe(again).values["ppo.gen.top_k"] == 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("ppo.gen.max_new_tokns=3", "unknown key 'ppo.gen.max_new_tokns'; did you mean 'ppo.gen.max_new_tokens'"),
        ("max_new_tokens=3", "unknown key 'max_new_tokens'; did you mean 'ppo.gen.max_new_tokens'?"),
        ("ppo.gen.temperature=0", "ppo.gen.temperature=0.0 must be more than 0"),
        ("ppo.gen.max_new_tokens=0", "ppo.gen.max_new_tokens=0 must be at least 1"),
        ("ppo.kl_ctl=-1", "ppo.kl_ctl=-1.0 must be at least 0"),
        ("ppo.kl_penalty=k3", "ppo.kl_penalty=k3: must be one of reward, loss"),
    ],
)
def test_mistakes_on_the_command_line_name_the_whole_key(argument: str, message: str) -> None:
    arguments = ["actor.path=m", "reward.path=r", "dataset.train_path=rows.jsonl", argument]
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(PPOConfig, [], arguments).build()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ppo_n_minibatches": 0}, "ppo_n_minibatches=0 must be at least 1"),
        ({"kl_ctl": float("nan")}, "kl_ctl=nan must be at least 0"),
        ({"gae_lambda": 1.5}, "gae_lambda=1.5 must be from 0 to 1"),
        ({"eps_clip": 1.0}, "eps_clip=1.0 must be below 1"),
        ({"dual_clip": 1.1}, "dual_clip=1.1 must be more than 1 + eps_clip"),
        ({"value_norm_beta": 1.0}, "value_norm_beta=1.0 must be more than 0 and less than 1"),
        ({"entropy_coef": float("inf")}, "entropy_coef=inf must be a finite number"),
        ({"reward_output_scaling": 0.0}, "reward_output_scaling=0 would make all rewards 0"),
        ({"adaptive_kl_target": 3.0}, "adaptive_kl_target=3.0 has no effect without use_adaptive_kl_ctl=true"),
        ({"missing_eos_penalty": 3.0}, "missing_eos_penalty=3.0 has no effect without truncated_reward=penalty"),
        ({"value_norm": False, "value_norm_type": "ma"}, "value_norm_type=ma has no effect without value_norm=true"),
        ({"kl_ctl": 0.0, "kl_penalty": "loss"}, "kl_penalty=loss has no effect with kl_ctl=0"),
        ({"kl_ctl": 0.0, "use_adaptive_kl_ctl": True}, "use_adaptive_kl_ctl=true has no effect with kl_ctl=0"),
        ({"old_logprobs": "inference", "ppo_n_minibatches": 1}, "old_logprobs=inference has no effect with one"),
        ({"importance_sampling_clip_max": 2.0}, "ppo.importance_sampling_clip_max=2.0 has no effect without"),
        (
            {"importance_sampling_correction": "truncate"},
            "ppo.importance_sampling_correction=truncate has no effect with ppo.old_logprobs=rollout",
        ),
        ({"ppo_n_minibatches": 7}, "ppo.ppo_n_minibatches=7 is more than the 6 prompts of a step"),
        ({"gen": SamplingArgs(), "discount": -0.1}, "discount=-0.1 must be from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(settings)


def test_a_reference_without_a_divergence_is_refused() -> None:
    found = config({"kl_ctl": 0.0}, ref=ReferenceArgs(path="other"))
    with pytest.raises(ConfigError, match=re.escape("ref.path=other has no effect: with these settings, no call")):
        check_roles(found, Graph(tuple(graph(found))))
    resumed = replace(config({"kl_ctl": 0.0}), actor=ModelArgs(path="runs/ppo/checkpoints/step-000002/actor"))
    assert resumed.ref.path == "model", "the initial policy, which is not read"


def test_without_a_reward_the_graph_has_a_function() -> None:
    missing = load(PPOConfig, [], ["actor.path=model", "dataset.train_path=rows.jsonl"])
    with pytest.raises(ConfigError, match="nothing rewards answers"):
        missing.build()
    assert [call.name for call in graph(missing.with_placeholders().build())] == ["actor_gen", "rew_fn", *SIX[2:]]
