"""Correction of a loss for answers that another distribution than the old policy has sampled.

Sampling may differ from training in rounding, in tokens that it never samples, or by older weights. The loss of a token
is multiplied by `w = old / sampled`, a ratio of probabilities, or by a bounded form of it. The ratio does not have the
current policy in it: that has its own, in the loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reallm.training.sequence_scores import sum_answers

Correction = Literal["none", "truncate", "mask"]
"""`truncate`: `min(w, highest)`; `mask`: 0 outside of the bounds, where else `w` (IcePop)."""
CorrectionLevel = Literal["token", "sequence", "geometric"]
"""The ratio of each token, of its whole answer, which is their product, or their geometric mean, which is no ratio of
probabilities but does not grow with the length."""


def importance_weights(
    old: Tensor,
    sampled: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    correction: Correction,
    level: CorrectionLevel = "token",
    lowest: float = 0.0,
    highest: float = 2.0,
) -> Tensor:
    """The factors [N] of the losses of tokens, without gradient.

    Args:
        old: [N] log-probabilities under the policy at the beginning of the step.
        sampled: [N] those under the distribution that was sampled from.
        lengths: [S] int64, tokens of each answer.
        mask: [N] bool, the tokens that are trained on.
        correction: the form.
        level: what the ratio is of.
        lowest: for `mask`, the lowest ratio that counts.
        highest: the highest ratio.
    """
    if correction == "none":
        return torch.ones_like(old)
    log_weights = torch.where(mask, old - sampled, 0.0)
    if level != "token":
        sums = sum_answers(log_weights, lengths)
        if level == "geometric":
            sums = sums / sum_answers(mask.to(sums.dtype), lengths).clamp(min=1)
        log_weights = sums.repeat_interleave(lengths)
    weights = log_weights.detach().exp()
    if correction == "truncate":
        return weights.clamp(max=highest)
    return torch.where((weights >= lowest) & (weights <= highest), weights, 0.0)


def off_policy_mask(
    current: Tensor, sampled: Tensor, advantages: Tensor, lengths: Tensor, mask: Tensor, threshold: float
) -> Tensor:
    """Whether a token [N] still teaches: its advantage is not negative, or the policy is near what sampled its answer.

    That is measured by the mean of log(sampled / current) over the answer's tokens (DeepSeek-V3.2, arXiv 2512.02556,
    equation 9).

    Args:
        current: [N] log-probabilities under the policy in training.
        sampled: [N] those when the tokens were sampled.
        advantages: [N].
        lengths: [S] int64, tokens of each answer.
        mask: [N] bool, the tokens that are trained on.
        threshold: the largest mean, in nats.
    """
    sums = sum_answers(torch.where(mask, sampled - current.detach(), 0.0), lengths)
    means = sums / sum_answers(mask.to(sums.dtype), lengths).clamp(min=1)
    return (advantages >= 0) | (means <= threshold).repeat_interleave(lengths)
