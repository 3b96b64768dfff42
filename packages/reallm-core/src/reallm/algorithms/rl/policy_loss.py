"""Losses of tokens that a policy has sampled, from ratios of probabilities and advantages.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.training.sequence_scores import sum_answers


class TokenLosses(NamedTuple):
    """Losses of tokens, and which of them are clipped."""

    losses: Tensor
    """[N] differentiable."""
    low: Tensor
    """[N] bool: the ratio is too low to have an effect, and the advantage negative."""
    high: Tensor
    """[N] bool: the ratio is too high to have an effect, and the advantage positive."""


def log_ratios(
    current: Tensor, old: Tensor, lengths: Tensor, mask: Tensor, level: Literal["token", "sequence"]
) -> Tensor:
    """Logarithms [N] of the ratio of current to old probabilities; differentiable.

    Args:
        current: [N] log-probabilities under the policy in training.
        old: [N] those under the policy at the beginning of the step.
        lengths: [S] int64, tokens of each answer.
        mask: [N] bool, the tokens that are trained on, over which the mean is taken.
        level: the ratio of each token, or the geometric mean of its answer's.
    """
    difference = current - old
    if level == "token":
        return difference
    sums = _sums(torch.where(mask, difference, 0.0), lengths)
    means = sums / sum_answers(mask.to(sums.dtype), lengths).clamp(min=1)
    return means.repeat_interleave(lengths)


def policy_losses(
    log_ratio: Tensor,
    advantages: Tensor,
    logprobs: Tensor,
    settings: PolicyLossSettings,
    *,
    answer_log_weights: Tensor | None = None,
) -> TokenLosses:
    """The loss of each token, without what is added for the KL divergence and the entropy.

    Args:
        log_ratio: [N] of `log_ratios`.
        advantages: [N].
        logprobs: [N] log-probabilities under the policy in training.
        settings: the kind and its numbers.
        answer_log_weights: [N] logarithm of the ratio of the whole answer, for `vespo`; see `answer_log_ratios`.
    """
    ratio = log_ratio.exp()
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    if settings.kind == "cispo":
        high = (ratio > settings.eps_high) & (advantages > 0)
        return TokenLosses(-ratio.detach().clamp(max=settings.eps_high) * advantages * logprobs, nothing, high)
    if settings.kind == "sapo":
        above, other = settings.sapo_temperatures
        temperatures = torch.where(advantages > 0, above, other).to(ratio.dtype)
        gate = torch.sigmoid(temperatures * (ratio - 1)) * 4 / temperatures
        return TokenLosses(-gate * advantages, nothing, nothing)
    if settings.kind == "vespo":
        assert answer_log_weights is not None
        weights = _vespo_weights(answer_log_weights, advantages, settings)
        return TokenLosses(-weights * advantages * logprobs, nothing, nothing)
    clipped = ratio.clamp(1 - settings.eps_low, 1 + settings.eps_high)
    low = (ratio < 1 - settings.eps_low) & (advantages < 0)
    high = (ratio > 1 + settings.eps_high) & (advantages > 0)
    bounded = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    return TokenLosses(-torch.minimum(bounded * advantages, clipped * advantages), low, high)


def answer_log_ratios(log_ratio: Tensor, log_weights: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Logarithm [N] of the ratio of each token's whole answer, without gradient: the sum over its trained tokens, each
    bounded as in VESPO.

    Args:
        log_ratio: [N] of current to old probabilities of each token.
        log_weights: [N] logarithms of the corrections for what was sampled from.
        lengths: [S] int64, tokens of each answer.
        mask: [N] bool, the tokens that are trained on.
    """
    bounded = log_ratio.detach().clamp(-20.0, 20.0) + log_weights.clamp(math.log(1e-8), 20.0)
    return sum_answers(torch.where(mask, bounded, 0.0), lengths).repeat_interleave(lengths)


def _vespo_weights(log_weights: Tensor, advantages: Tensor, settings: PolicyLossSettings) -> Tensor:
    """`exp(lambda) * w^k * exp(-lambda * w)`, which is 1 for the ratio `w = 1`, of answers."""
    log_weights = log_weights.clamp(math.log(1e-8), 20.0)
    up = advantages >= 0
    k = torch.where(up, *settings.vespo_k).to(log_weights.dtype)
    decay = torch.where(up, *settings.vespo_lambda).to(log_weights.dtype)
    return (decay + k * log_weights - decay * log_weights.exp()).exp().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _sums(values: Tensor, lengths: Tensor) -> Tensor:
    """As `sum_answers`, differentiable."""
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64, device=values.device)
    return sums.index_add(0, rows, values.double()).to(values.dtype)
