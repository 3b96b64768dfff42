"""Which settings of group-relative policy optimisation go together, its presets, and what is said of mistakes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.grpo.graph import graph
from reallm.algorithms.grpo.presets import PRESETS
from reallm.config.args import ModelArgs, ReferenceArgs, RewardArgs, SamplingArgs
from reallm.errors import ConfigError


@dataclass(frozen=True)
class Data:
    """Stands in for the configuration of a dataset."""

    train_path: str = "rows.jsonl"
    valid_path: str | None = None
    name: str = "prompt"
    train_bs_n_seqs: int = 6


FUNCTION = RewardArgs(functions=["tests.rewards:accuracy"])
TWO = RewardArgs(functions=["tests.rewards:accuracy"], path="reward-model")


def config(**settings: Any) -> GRPOConfig:
    return GRPOConfig(**{"actor": ModelArgs(path="model"), "dataset": Data(), "reward": FUNCTION, **settings})


def calls(**settings: Any) -> list[str]:
    return [call.name for call in graph(config(**settings))]


def test_the_graph_has_what_the_settings_need() -> None:
    assert calls() == ["actor_gen", "rew_fn", "actor_train"]
    assert calls(reward=RewardArgs(path="reward-model")) == ["actor_gen", "rew_inf", "actor_train"]
    assert calls(reward=TWO, beta=0.1) == ["actor_gen", "rew_fn", "rew_inf", "ref_inf", "actor_train"]
    assert calls(baseline="greedy") == ["actor_gen", "rew_fn", "greedy_gen", "greedy_rew_fn", "actor_train"]
    assert calls(num_minibatches=2) == ["actor_gen", "rew_fn", "actor_train"]
    assert calls(top_entropy_quantile=0.2) == ["actor_gen", "rew_fn", "actor_inf", "actor_train"]
    assert calls(async_steps=1, old_logprobs="inference", importance_sampling_correction="truncate") == calls()
    assert calls(num_minibatches=2, old_logprobs="inference") == ["actor_gen", "rew_fn", "actor_inf", "actor_train"]


def test_the_probability_of_what_can_be_sampled_is_kept_where_sampling_truncates() -> None:
    assert "kept_mass" not in graph(config())[0].outputs
    for call in (graph(config(gen=SamplingArgs(top_p=0.9)))[i] for i in (0, -1)):
        assert "kept_mass" in (call.outputs or call.inputs)


def test_a_reference_can_follow_the_policy() -> None:
    (update,) = graph(config(beta=0.1, sync_ref_model=True, ref_model_sync_steps=4))[-1].updates
    assert (update.target, update.every, update.eta) == ("ref", 4, 0.6)


def test_the_reference_is_the_checkpoint_that_the_policy_starts_from_unless_it_is_given() -> None:
    assert config(beta=0.1).ref.path == "model"
    assert config(beta=0.1, ref=ReferenceArgs(path="other")).ref.path == "other"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_is_not_given(name: str) -> None:
    found = config(preset=name)
    assert {key: getattr(found, key) for key in PRESETS[name]} == PRESETS[name]


def test_what_is_given_overrides_a_preset_even_with_the_default() -> None:
    assert config(preset="dapo", epsilon_high=None).epsilon_high is None
    assert config(preset="dapo", drop_zero_std_groups=False, oversampling=1.0).oversampling == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward": RewardArgs()}, "nothing rewards answers; .*"),
        ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers for 1 reward; give one for each function .*"),
        ({"num_generations": 0}, "num_generations=0 must be at least 1"),
        (
            {"num_generations": 1},
            "num_generations=1 with baseline=group: one answer has no others to compare with; raise num_generations, "
            "or set baseline=batch or baseline=greedy",
        ),
        (
            {"num_generations": 1, "baseline": "greedy"},
            "num_generations=1 with scale_rewards=group: the reward of one answer has no standard deviation; .*",
        ),
        ({"baseline": "batch"}, "scale_rewards=group does not go together with baseline=batch; .*"),
        ({"epsilon": -0.1}, "epsilon=-0.1 must be at least 0"),
        ({"epsilon": float("nan")}, "epsilon=nan must be at least 0"),
        ({"epsilon": 1.5}, "epsilon=1.5 must be below 1: .*"),
        ({"delta": 1.0}, "delta=1.0 must be more than 1, .*"),
        ({"loss_type": "sapo", "epsilon": 0.1}, "epsilon=0.1 has no effect on loss_type=sapo; it is for grpo, .*"),
        ({"vespo_k_pos": 1.0}, "vespo_k_pos=1.0 has no effect on loss_type=dapo; it is for vespo"),
        ({"loss_type": "luspo"}, "loss_type=luspo needs importance_sampling_level=sequence"),
        ({"loss_type": "cispo"}, "epsilon_high=None: loss_type=cispo bounds the ratio itself, .* epsilon_high=5"),
        ({"old_logprobs": "inference"}, "old_logprobs=inference has no effect with one optimizer step in a step; .*"),
        (
            {"importance_sampling_clip_max": 2.0},
            "importance_sampling_clip_max=2.0 has no effect without importance_sampling_correction",
        ),
        (
            {"importance_sampling_correction": "mask", "num_minibatches": 2},
            "importance_sampling_correction=mask has no effect with old_logprobs=rollout, .*set old_logprobs=inference",
        ),
        (
            {"importance_sampling_correction": "mask", "async_steps": 1},
            "importance_sampling_correction=mask has no effect with old_logprobs=rollout, .*set old_logprobs=inference",
        ),
        (
            {"old_logprobs": "inference", "async_steps": 1},
            "async_steps=1 with old_logprobs=inference would not correct for older answers; set "
            "importance_sampling_correction=truncate",
        ),
        ({"async_steps": -1}, "async_steps=-1 must be at least 0"),
        ({"top_entropy_quantile": 80}, "top_entropy_quantile=80 must be from 0 to 1, a share of tokens"),
        ({"off_policy_mask_threshold": 0.0}, "off_policy_mask_threshold=0.0 must be more than 0"),
        ({"overlong_penalty": 2.0}, "overlong_penalty=2.0 has no effect without overlong_buffer"),
        ({"overlong_buffer": 200.0}, "overlong_buffer=200.0 must be from 0 to 1, a share of gen.max_new_tokens"),
        ({"oversampling": 2.0}, "oversampling=2.0 answers more prompts .*; set drop_zero_std_groups=true"),
        ({"oversampling": 0.5}, "oversampling=0.5 must be at least 1"),
        (
            {"num_generations": 1, "baseline": "batch", "scale_rewards": "batch", "drop_zero_std_groups": True},
            "drop_zero_std_groups=true with num_generations=1 would leave out everything; set it to false",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation=normalize_then_sum has no effect on a single reward",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "reward": TWO, "scale_rewards": "none"},
            "multi_objective_aggregation=normalize_then_sum normalizes .*; leave baseline and scale_rewards out",
        ),
        ({"sync_ref_model": True}, "sync_ref_model=true: with beta=0 there is no reference; set beta"),
        ({"use_bias_correction_kl": False}, "use_bias_correction_kl=false has no effect with beta=0; set beta"),
        (
            {"num_minibatches": 7},
            "num_minibatches=7 is more than the 6 prompts of a step; lower it, or raise dataset.train_bs_n_seqs",
        ),
        (
            {"num_minibatches": 4, "drop_zero_std_groups": True, "oversampling": 2.0},
            "num_minibatches=4 is more than the 3 prompts of a step; .*",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        config(**settings)
    assert re.fullmatch(said, str(found.value)), str(found.value)
