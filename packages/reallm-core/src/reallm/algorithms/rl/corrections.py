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
