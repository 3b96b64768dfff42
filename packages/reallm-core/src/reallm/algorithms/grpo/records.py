"""What is kept of the answers of a step, for people to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.grpo.advantages import Judged
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.rl.rollout_record import rollout_records
from reallm.algorithms.rl.total_rewards import reward_names


def judged_records(
    judged: Judged, config: GRPOConfig, context: CallContext, difference: Tensor
) -> list[dict[str, Any]]:
    """Records of the first prompts of a step; the KL divergence is estimated by the log-ratio to the reference (k1).

    `difference` [N] is that of log-probabilities in training and sampling, NaN where it is unknown.
    """
    answers, lengths = judged.answers, judged.lengths
    parts = torch.where(judged.rewards.given, judged.rewards.parts, torch.nan)
    sampled = answers["logprobs"]
    return rollout_records(
        answers,
        context,
        config.keep_rollouts,
        advantages=judged.advantages.repeat_interleave(lengths),
        rewards=torch.where(judged.rewards.any_given, judged.totals, torch.nan),
        reward_parts=dict(zip(reward_names(config), parts.unbind(1), strict=True)),
        difference=answers["old_logprobs"] - sampled if "old_logprobs" in answers else difference,
        kl=sampled - answers["ref_logprobs"] if "ref_logprobs" in answers else None,
        mask=judged.is_trained.repeat_interleave(lengths),
    )
