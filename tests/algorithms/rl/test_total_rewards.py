"""The weighted sum of rewards, its metrics, and what is said of rewards that teach nothing."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.rl.total_rewards import (
    completion_metrics,
    overlong_penalties,
    reward_metrics,
    reward_names,
    rewards_of,
    zero_std_groups,
)
from reallm.config.args import ModelArgs, RewardArgs
from reallm.data.namedarray import NamedArray
from tests.algorithms.grpo.test_config import Data


def config(functions: list[str], path: str = "", weights: list[float] | None = None) -> GRPOConfig:
    reward = RewardArgs(functions=functions, path=path)
    return GRPOConfig(actor=ModelArgs(path="model"), dataset=Data(), reward=reward, reward_weights=weights)


def batch(prefix: str = "") -> NamedArray:
    """Two prompts with two answers each; the last answer has no reward of a function."""
    parts = torch.tensor([[1.0, 0.5], [0.0, 0.25], [1.0, 0.0], [0.0, 0.0]])
    given = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    return NamedArray(
        **{
            f"{prefix}reward_parts": parts.flatten(),
            f"{prefix}reward_given": given.flatten(),
            f"{prefix}scores": torch.tensor([3.0, -1.0, 0.0, 2.0]),
        }
    )


def test_the_total_is_the_weighted_sum_of_what_is_given() -> None:
    functions = rewards_of(batch(), config(["a:f", "a:g"], weights=[1.0, 2.0]))
    assert functions.totals.tolist() == [2.0, 0.5, 1.0, 0.0]
    assert functions.any_given.tolist() == [True, True, True, False]
    both = rewards_of(batch("greedy_"), config(["a:f", "a:g"], "model", [1.0, 2.0, 0.5]), "greedy_")
    assert both.totals.tolist() == [3.5, 0.0, 1.0, 1.0]
    assert both.any_given.all()


def test_rewards_are_named_after_their_functions() -> None:
    assert reward_names(config(["pkg.mod:accuracy", "length", "other.py:accuracy"], "model")) == [
        "accuracy_1",
        "length",
        "accuracy_2",
        "reward_model",
    ]


def test_metrics_leave_out_what_is_not_given() -> None:
    rewards = rewards_of(batch(), config(["a:f", "a:g"]))
    found = reward_metrics(rewards, rewards.totals, torch.tensor([0, 0, 1, 1]), ["f", "g"])
    assert found["rewards/f/mean"] == pytest.approx(2 / 3)
    assert found["rewards/g/mean"] == pytest.approx(0.375)
    assert found["reward"] == pytest.approx((1.5 + 0.25 + 1) / 3)
    assert found["reward_std"] == pytest.approx(float(torch.tensor([1.5, 0.25, 1.0]).std()))
    assert found["frac_reward_zero_std"] == 0.5  # the second group has a single reward


def test_equal_rewards_have_no_variance_whatever_their_rounding() -> None:
    totals = torch.tensor([0.2] * 8 + [0.95] * 7 + [0.0], dtype=torch.float64)
    groups = torch.tensor([5] * 8 + [2] * 8)
    given = torch.ones(16, dtype=torch.bool)
    assert zero_std_groups(totals, given, groups).tolist() == [True] * 8 + [False] * 8


def test_long_answers_are_penalised_in_the_buffer_at_the_end() -> None:
    found = overlong_penalties(torch.tensor([0, 80, 90, 100]), 100, 20, 1.5)
    assert found.tolist() == [0.0, 0.0, 0.75, 1.5]
    assert overlong_penalties(torch.tensor([100]), 100, 0, 1.0).tolist() == [0.0]


def test_lengths_of_answers_that_ended_are_told_apart() -> None:
    found = completion_metrics(torch.tensor([2, 6, 0, 8]), torch.tensor([False, False, False, True]))
    assert found["completions/mean_length"] == 4
    assert found["completions/clipped_ratio"] == 0.25
    assert found["completions/mean_terminated_length"] == pytest.approx(8 / 3)
    assert "completions/mean_terminated_length" not in completion_metrics(torch.tensor([8]), torch.tensor([True]))
