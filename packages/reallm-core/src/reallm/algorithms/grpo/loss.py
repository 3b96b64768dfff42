"""The loss of `reallm grpo`, and what it reads of each answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from reallm.algorithms.grpo.advantages import Judged
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.rl.aggregation import Mean
from reallm.algorithms.rl.policy_loss_settings import LossKind, PolicyLossSettings
from reallm.data.namedarray import NamedArray

_KINDS: Mapping[str, LossKind] = {"cispo": "cispo", "sapo": "sapo", "vespo": "vespo"}
_MEANS: Mapping[str, Mean] = {
    "grpo": "answers",
    "sapo": "answers",
    "luspo": "answer_sums",
    "dr_grpo": "longest_answers",
}
"""Loss type -> what its losses are averaged over; all tokens for others."""


def loss_settings(config: GRPOConfig) -> PolicyLossSettings:
    """The settings of the policy's loss."""
    return PolicyLossSettings(
        kind=_KINDS.get(config.loss_type, "clip"),
        level=config.importance_sampling_level,
        eps_low=config.epsilon,
        eps_high=config.clip_high,
        delta=config.delta,
        sapo_temperatures=(config.sapo_temperature_pos, config.sapo_temperature_neg),
        vespo_k=(config.vespo_k_pos, config.vespo_k_neg),
        vespo_lambda=(config.vespo_lambda_pos, config.vespo_lambda_neg),
        beta=config.beta,
        kl_estimate="k3_unbiased" if config.use_bias_correction_kl else "k3",
        entropy_coef=config.entropy_coef,
        off_policy_threshold=config.off_policy_mask_threshold,
        temperature=config.gen.temperature,
        correction=config.importance_sampling_correction,
        correction_level=config.importance_sampling_correction_level,
        correction_lowest=config.importance_sampling_clip_min,
        correction_highest=config.importance_sampling_clip_max,
    )


def trained_answers(judged: Judged, config: GRPOConfig) -> NamedArray:
    """The answers that are trained on, a sample each, with what `PolicyObjective` reads."""
    mask = None
    if config.top_entropy_quantile < 1:
        mask = highest_entropy(judged.answers["entropies"], judged.is_trained_token, config.top_entropy_quantile)
    return judged.for_policy(
        judged.advantages_of_tokens,
        _MEANS.get(config.loss_type, "tokens"),
        config.gen.max_new_tokens,
        with_sampled=config.compares_with_sampled,
        policy_mask=mask,
    )


def highest_entropy(entropies: Tensor, mask: Tensor, share: float) -> Tensor:
    """Whether a token [N] is among the share of those in a mask with the highest entropies (arXiv 2506.01939).

    Args:
        entropies: [N] entropy of the distribution that each token was sampled from.
        mask: [N] bool.
        share: from 0, only those with the highest entropy, to 1, all.
    """
    found = entropies[mask].double().numpy()
    return mask & (entropies.double() >= np.quantile(found, 1 - share)) if len(found) else mask
