"""Which answers of a step are trained on, with which advantages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reallm.algorithms.grpo.advantages import judge
from reallm.algorithms.grpo.loss import trained_answers
from reallm.data.batching import n_samples, select
from reallm.data.namedarray import NamedArray
from tests.algorithms.grpo.test_config import config

REWARDS = [[0.2, 0.2], [1.0, 0.0], [0.5, None], [0.0, 2.0]]
"""Of two answers to each of four prompts; the second answer to the third prompt has none."""


def rollouts() -> NamedArray:
    """Prompts of unequal length; answer i of prompt p has p + i tokens, so that the first is empty."""
    lengths = [[prompt + i for i in range(2)] for prompt in range(4)]
    prompt_lens = [2 + prompt for prompt in range(4)]
    n = sum(map(sum, lengths))
    flat = [reward for group in REWARDS for reward in group]
    totals = [[prompt_lens[p] + one for one in lengths[p]] for p in range(4)]
    return NamedArray(
        input_ids=torch.arange(sum(map(sum, totals))),
        prompt_lens=torch.tensor(prompt_lens).repeat_interleave(2),
        logprobs=-torch.rand(n),
        truncated=torch.tensor([False] * 7 + [True]),
        reward_parts=torch.tensor([reward or 0.0 for reward in flat]),
        reward_given=torch.tensor([reward is not None for reward in flat]),
    ).with_metadata(
        seqlens={
            "input_ids": totals,
            "logprobs": lengths,
            **dict.fromkeys(("prompt_lens", "truncated", "reward_parts", "reward_given"), [(1, 1)] * 4),
        },
        ids=list("abcd"),
    )


def judged(order: tuple[int, ...] = (0, 1, 2, 3), **settings: Any) -> Any:
    return judge(select(rollouts(), order), config(num_generations=2, scale_rewards="none", **settings))


def test_answers_are_compared_within_their_prompt_in_any_order() -> None:
    assert judged().advantages.tolist() == [0, 0, 0.5, -0.5, 0, 0, -1, 1]
    assert judged((3, 0, 2, 1)).advantages.tolist() == [-1, 1, 0, 0, 0, 0, 0.5, -0.5]


def test_an_answer_without_a_reward_is_not_trained_on() -> None:
    assert judged().is_trained.tolist() == [True] * 5 + [False, True, True]


def test_prompts_without_variance_are_replaced_up_to_the_number_that_is_trained_on() -> None:
    dynamic = {"drop_zero_std_groups": True}
    assert judged(**dynamic).is_trained.tolist() == [False, False, True, True, False, False, True, True]
    assert judged(oversampling=4.0, **dynamic).is_trained.tolist() == [False, False, True, True] + [False] * 4
    assert judged((3, 2, 1, 0), oversampling=4.0, **dynamic).is_trained.tolist() == [True, True] + [False] * 6


def test_cut_answers_can_be_left_out_but_count_in_their_group() -> None:
    found = judged(mask_truncated_completions=True)
    assert found.is_trained.tolist()[6:] == [True, False]
    assert found.advantages.tolist()[6:] == [-1, 1]


def test_the_loss_reads_each_trained_answer_as_a_sample_with_a_number_for_each_token() -> None:
    settings = {"num_generations": 2, "scale_rewards": "none", "loss_type": "grpo"}
    answers = trained_answers(judge(rollouts(), config(**settings)), config(**settings))
    assert n_samples(answers) == 7
    lengths = [sum(sample) for sample in answers.metadata["seqlens"]["advantages"]]
    assert lengths == [0, 1, 1, 2, 2, 3, 4]
    assert answers["advantages"].tolist() == pytest.approx([0, 0.5, -0.5, -0.5, 0, 0, -1, -1, -1, 1, 1, 1, 1])
    assert answers["norms"].sum() == 7  # the mean of answers counts one without tokens
    assert "old_logprobs" not in answers
    assert "old_logprobs" in trained_answers(judged(num_minibatches=2), config(num_minibatches=2))
