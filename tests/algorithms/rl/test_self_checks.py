"""One notice for each thing that keeps a policy from learning."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from reallm.algorithms.rl.self_checks import check_completions, check_first_ratio, check_rewards
from reallm.algorithms.rl.total_rewards import Rewards
from reallm.notices import notify_once


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    notify_once.cache_clear()
    yield
    notify_once.cache_clear()


def rewards(*columns: list[float | None]) -> Rewards:
    given = torch.tensor([[value is not None for value in column] for column in columns]).T
    parts = torch.tensor([[value or 0.0 for value in column] for column in columns], dtype=torch.float64).T
    return Rewards(parts, given, torch.ones(len(columns), dtype=torch.float64))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_rewards_that_teach_nothing_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        check_rewards(rewards([1.0, 1.0], [None, None], [0.0, 1.0]), ["f", "g", "h"], 0.0, in_groups=True)
    same, none = said(caplog)
    assert same == "note: the reward 'f' was the same for all answers of a step, so that nothing is learnt from it"
    assert none.startswith("note: the reward 'g' gave None for all answers of a step")


def test_groups_without_variance_and_cut_answers_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_rewards(rewards([0.0, 1.0]), ["f"], 1.0, in_groups=True)
    check_completions({"completions/clipped_ratio": 0.95}, 16)
    groups, cut = said(caplog)
    assert groups.startswith("note: in a step, all answers to each prompt had the same reward")
    assert "90% of the answers of a step were cut at gen.max_new_tokens=16" in cut


def test_of_rewards_that_no_answer_has_only_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_rewards(rewards([None, None]), ["f"], 1.0, in_groups=True)
    (none,) = said(caplog)
    assert none == (
        "note: the reward 'f' gave None for all answers of a step, or failed, so that it has no effect there"
    )


def test_cut_answers_are_mentioned_with_the_key_of_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_completions({"completions/clipped_ratio": 0.95}, 16, "ppo.gen.max_new_tokens")
    assert "cut at ppo.gen.max_new_tokens=16" in said(caplog)[0]


def test_a_policy_that_computes_otherwise_in_sampling_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_first_ratio({"sampling/sampling_logp_difference/max": 0.05})
    check_first_ratio({})
    assert not said(caplog)
    check_first_ratio({"sampling/sampling_logp_difference/max": 2.5})
    assert "differ by up to 2.50 between sampling and training with the same weights" in said(caplog)[0]


def test_nothing_is_said_of_a_step_that_teaches(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_rewards(rewards([0.0, 1.0]), ["f"], 0.5, in_groups=True)
    check_completions({"completions/clipped_ratio": 0.5}, 16)
    assert not said(caplog)
