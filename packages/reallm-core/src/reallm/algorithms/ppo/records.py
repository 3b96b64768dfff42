"""What is kept of the answers of a step, for people to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.ppo.advantages import Judged
from reallm.algorithms.ppo.config import PPOConfig
from reallm.algorithms.rl.rollout_record import rollout_records
from reallm.algorithms.rl.total_rewards import reward_names


def judged_records(judged: Judged, config: PPOConfig, context: CallContext, difference: Tensor) -> list[dict[str, Any]]:
    """Records of the first prompts of a step; rewards are those of the functions and the model, as they gave them.

    `difference` [N] is that of log-probabilities in training and sampling, NaN where it is unknown.
    """
    answers, rewards = judged.answers, judged.rewards
    parts = torch.where(rewards.given, rewards.parts, torch.nan)
    return rollout_records(
        answers,
        context,
        config.keep_rollouts,
        advantages=judged.advantages,
        rewards=torch.where(rewards.any_given, rewards.totals, torch.nan),
        reward_parts=dict(zip(reward_names(config), parts.unbind(1), strict=True)),
        difference=answers["old_logprobs"] - answers["logprobs"] if "old_logprobs" in answers else difference,
        kl=judged.kl if "ref_logprobs" in answers else None,
        mask=judged.is_trained_token,
    )
