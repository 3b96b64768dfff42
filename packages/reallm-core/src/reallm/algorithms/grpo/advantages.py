"""From the rewards of a step's answers to what each of their tokens weighs in the loss.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.rl.advantages import (
    batch_advantages,
    greedy_advantages,
    group_advantages,
    normalized_then_summed_advantages,
)
from reallm.algorithms.rl.judged_answers import JudgedAnswers
from reallm.algorithms.rl.keys import GREEDY, KEPT_MASS, ROLLOUT
from reallm.algorithms.rl.total_rewards import overlong_penalties, rewards_of, zero_std_groups
from reallm.data.batching import split_groups
from reallm.data.namedarray import NamedArray, split
from reallm.training.sequence_scores import answer_lengths

READ = (*ROLLOUT, KEPT_MASS, "reward_parts", "reward_given", "scores", "ref_logprobs", "old_logprobs", "entropies")
"""What is read of each answer."""


@dataclass(frozen=True)
class Judged(JudgedAnswers):
    """The answers of a step with their rewards and advantages."""

    advantages: Tensor
    """[S] float64."""

    @property
    def advantages_of_tokens(self) -> Tensor:
        """[N] float64: the advantage of each token's answer."""
        return self.advantages.repeat_interleave(self.lengths)


def judge(batch: NamedArray, config: GRPOConfig) -> Judged:
    """The answers of a batch with their rewards and advantages, computed in float64 over the whole step.

    An answer without any reward has no advantage, takes no part in the statistics of its group, and is not trained on.

    Args:
        batch: what `actor_train` reads.
        config: the configuration of the run.
    """
    keys = [key for key in READ if key in batch]
    answers = split_groups(split(batch, [keys])[0], dict.fromkeys(keys, 1))
    groups, lengths = torch.tensor(answers.metadata["groups"]), answer_lengths(answers)
    rewards = rewards_of(batch, config)
    given = rewards.any_given
    penalties = overlong_penalties(
        lengths, config.gen.max_new_tokens, config.overlong_buffer_len, config.overlong_penalty
    )
    totals = rewards.totals - torch.where(given, penalties, 0.0)
    if config.multi_objective_aggregation == "normalize_then_sum":
        advantages = normalized_then_summed_advantages(rewards.parts, groups, rewards.weights, given=rewards.given)
    elif config.baseline == "greedy":
        greedy = rewards_of(batch, config, GREEDY)
        given = given & greedy.any_given[groups]
        advantages = greedy_advantages(totals, greedy.totals[groups], groups, scale=config.scale_rewards, given=given)
    elif config.baseline == "batch":
        advantages = batch_advantages(totals, scale=config.scale_rewards == "batch", given=given)
    else:
        advantages = group_advantages(
            totals,
            groups,
            baseline="mean" if config.baseline == "group" else "others",
            scale=config.scale_rewards,
            given=given,
        )
    is_trained = given & _of_trained_prompts(totals, given, groups, config)
    if config.mask_truncated_completions:
        is_trained &= ~answers["truncated"]
    return Judged(answers, rewards, totals, is_trained, advantages)


def _of_trained_prompts(totals: Tensor, given: Tensor, groups: Tensor, config: GRPOConfig) -> Tensor:
    """Whether an answer's prompt is trained on, [S] bool: the first prompts whose rewards differ, if others are
    dropped, and no more than are trained on in a step."""
    if not config.drop_zero_std_groups:
        return torch.ones_like(given)
    differs = ~zero_std_groups(totals, given, groups)
    prompts = torch.unique(groups)
    with_variance = torch.unique(groups[differs])
    return torch.isin(groups, with_variance[: config.n_trained_prompts(len(prompts))])
