"""Losses of preference algorithms, as pure functions of scores or log-probabilities.

Shapes: P pairs of a chosen and a rejected answer, S sequences. Tensors are floating point, and results have their
dtype; no loss is reduced, so that the sum and its normaliser are the caller's. `chosen` and `rejected` [P] are, unless
said otherwise, log-ratios `log pi(y|x) - log pi_ref(y|x)` of the two answers, summed over their tokens, and
`delta = chosen - rejected`. `beta` is above 0.

Wherever policy and reference are equal, a loss has a known value, which is given as "at 0".
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
_MAX_EXPONENT = 80.0
"""exp of more overflows float32."""


def reward_model_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor | None = None, center_coef: float = 0.0
) -> Tensor:
    """Negative log-likelihood of the preference under the Bradley-Terry model, with a margin and centring.

        -log sigmoid(r_w - r_l - margin) + center_coef (r_w + r_l)^2

    arXiv 2203.02155 Eq. 1; margin: 2307.09288 Eq. 2; centring, towards scores with mean 0: 2312.09244 Eq. 2.

    Args:
        chosen: [P] scores of the better answers.
        rejected: [P] scores of the worse answers.
        margins: [P], by how much the scores should differ; None: 0.
        center_coef: weight of the squared sum.
    """
    delta = chosen - rejected if margins is None else chosen - rejected - margins
    loss = -F.logsigmoid(delta)
    return loss + center_coef * (chosen + rejected).square() if center_coef else loss


def sigmoid_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO; with label smoothing, conservative DPO, in which a preference is wrong with that probability.

        (1 - eps) l(delta) + eps l(-delta)  with  l(delta) = -log sigmoid(beta delta)

    At 0: ln 2. arXiv 2305.18290 Eq. 7; cDPO: E. Mitchell, "A note on DPO with noisy preferences", Eq. 3. With means
    over tokens instead of sums it is the length-normalised DPO of Tulu 3, 2411.15124 Eq. 6.

    Args:
        chosen: [P] log-ratios, sums or means over tokens.
        rejected: [P], likewise.
        label_smoothing: eps, from 0 up to 0.5.
    """
    return _preference_loss(beta * (chosen - rejected), label_smoothing)


def hinge_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Hinge loss of SLiC on log-ratios: `max(0, 1 - beta delta)`. At 0: 1.

    arXiv 2305.10425 Eq. 1, normalised by the reference as in 2309.06657 section 3.
    """
    return torch.relu(1 - beta * (chosen - rejected))


def ipo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Identity preference optimisation: `(delta - 1 / (2 beta))^2`. At 0: `(1 / (2 beta))^2`.

    arXiv 2310.12036 Eq. 17, whose tau is beta.

    Args:
        chosen: [P] log-ratios, means over tokens: with sums, the loss would grow with the length.
        rejected: [P], likewise.
    """
    return (chosen - rejected - 1 / (2 * beta)).square()


def robust_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO: unbiased if a preference is wrong with probability eps, but no longer bounded below.

        [(1 - eps) l(delta) - eps l(-delta)] / (1 - 2 eps)  with  l(delta) = -log sigmoid(beta delta)

    At 0: ln 2. arXiv 2403.00409 section 3.1.

    Args:
        label_smoothing: eps, from 0 to below 0.5.
    """
    x = beta * (chosen - rejected)
    right, wrong = -F.logsigmoid(x), -F.logsigmoid(-x)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def exo_pair_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """EXO for pairs: the reverse KL divergence of the policy's preference from a smoothed one.

        KL([q, 1 - q] || [1 - eps, eps])  with  q = sigmoid(beta delta)

    At 0: `-ln 2 - (ln(1 - eps) + ln eps) / 2`. arXiv 2402.00856 Eq. 16.

    Args:
        label_smoothing: eps, above 0; the paper takes 1e-3.
    """
    x = beta * (chosen - rejected)
    right = torch.sigmoid(x) * (F.logsigmoid(x) - math.log1p(-label_smoothing))
    return right + torch.sigmoid(-x) * (F.logsigmoid(-x) - math.log(label_smoothing))


def nca_pair_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Noise contrastive alignment for pairs, which keeps the likelihood of the chosen answer from falling.

        -log sigmoid(a) - [log sigmoid(-a) + log sigmoid(-b)] / 2  with  a = beta chosen, b = beta rejected

    At 0: 2 ln 2. arXiv 2402.05369 section 4.1.
    """
    a, b = beta * chosen, beta * rejected
    return -F.logsigmoid(a) - 0.5 * F.logsigmoid(-a) - 0.5 * F.logsigmoid(-b)


def bco_pair_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Binary classifier optimisation: `-log sigmoid(beta chosen) - log sigmoid(-beta rejected)`. At 0: 2 ln 2.

    arXiv 2404.04656 section 4, with a reward shift of 0.
    """
    return -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)


def sppo_hard_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Self-play preference optimisation with probabilities 1 and 0 for the two answers.

        (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2

    At 0: `1 / (2 beta^2)`. arXiv 2405.00675 Eq. 4.7, divided by its eta^2, which is 1 / beta^2.
    """
    target = 1 / (2 * beta)
    return (chosen - target).square() + (rejected + target).square()


def apo_zero_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Anchored preference optimisation, zero: chosen answers become likelier, rejected ones less likely.

        1 - sigmoid(beta chosen) + sigmoid(beta rejected)

    At 0: 1. arXiv 2408.06266 Eq. 7.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Anchored preference optimisation, down: both answers become less likely, the rejected one more so.

        sigmoid(beta chosen) + 1 - sigmoid(beta delta)

    At 0: 1. arXiv 2408.06266 Eq. 8.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop_loss(chosen: Tensor, rejected: Tensor, beta: float, tau: float) -> Tensor:
    """DiscoPOP: a mixture of logistic and exponential loss, weighted by the log-ratio itself.

        (1 - m) (-log sigmoid(x)) + m exp(-x)  with  x = beta delta, m = sigmoid(x / tau)

    At 0: (ln 2 + 1) / 2. arXiv 2406.08414 Eq. 5.

    Args:
        tau: above 0 and at most 1, as otherwise the exponential outgrows m for negative x.
    """
    x = beta * (chosen - rejected)
    # m exp(-x) as one exponential: exp(-x) alone overflows where m is 0
    return torch.sigmoid(-x / tau) * -F.logsigmoid(x) + torch.exp(F.logsigmoid(x / tau) - x)


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """SimPO, which needs no reference: `-log sigmoid(beta delta - gamma)`, smoothed as in `sigmoid_loss`.

    arXiv 2405.14734 Eq. 6.

    Args:
        chosen: [P] mean log-probabilities of the answers' tokens.
        rejected: [P], likewise.
        gamma: target margin.
    """
    return _preference_loss(beta * (chosen - rejected) - gamma, label_smoothing)


def odds_ratio_loss(chosen: Tensor, rejected: Tensor, beta: float = 1.0) -> Tensor:
    """The second term of ORPO, which needs no reference: the first is the negative log-likelihood of the chosen answer.

        -beta log sigmoid(log odds_w - log odds_l)  with  odds = p / (1 - p), p = exp(mean log-probability)

    arXiv 2403.07691 Eq. 4 and 7, whose lambda is beta.

    Args:
        chosen: [P] mean log-probabilities of the answers' tokens.
        rejected: [P], likewise.
    """
    return -beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def kto_loss(
    log_ratios: Tensor,
    labels: Tensor,
    kl: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation of single answers, each labelled as good or bad.

        lambda (1 - sigmoid(beta (log_ratio - kl)))   for a good answer,
        lambda (1 - sigmoid(beta (kl - log_ratio)))   for a bad one

    At 0: lambda / 2. arXiv 2402.01306 section 4.1. With `kl=0` it is the unpaired form of `apo_zero_loss`.

    Args:
        log_ratios: [S].
        labels: [S] bool, True for a good answer.
        kl: reference point, without gradient; see `kto_reference_point`.
        desirable_weight: lambda of good answers.
        undesirable_weight: lambda of bad answers.
    """
    x = beta * (log_ratios - kl)
    good, bad = desirable_weight * torch.sigmoid(-x), undesirable_weight * torch.sigmoid(x)
    return torch.where(labels, good, bad)


def kto_reference_point(log_ratios: Tensor) -> Tensor:
    """Estimate [] of the KL divergence of policy and reference: the mean log-ratio, at least 0, without gradient.

    arXiv 2402.01306 section 4.1.

    Args:
        log_ratios: [S], of prompts with the answers to other prompts, over all of an optimizer step.
    """
    return log_ratios.detach().mean().clamp(min=0)


def f_divergence_scores(log_ratios: Tensor, divergence: FDivergence, alpha: float = 0.5) -> Tensor:
    """The derivative f'(t) at `t = pi / pi_ref` of an f-divergence, which takes the place of the log-ratio in DPO.

    - reverse_kl: log t
    - forward_kl: 1 - 1/t
    - js_divergence: log(2t / (1 + t))
    - alpha_divergence: (t^(alpha - 1) - 1) / (alpha - 1), which is log t in the limit alpha = 1

    At 0: 0. arXiv 2309.16240 Table 1, up to terms that cancel in a difference. Exponents are limited to 80.

    Args:
        log_ratios: log t, any shape.
        alpha: of the alpha divergence.
    """
    if divergence == "forward_kl":
        return 1 - torch.exp((-log_ratios).clamp(max=_MAX_EXPONENT))
    if divergence == "js_divergence":
        return math.log(2) + F.logsigmoid(log_ratios)
    if divergence == "alpha_divergence" and abs(alpha - 1) > 1e-6:
        return torch.expm1(((alpha - 1) * log_ratios).clamp(max=_MAX_EXPONENT)) / (alpha - 1)
    return log_ratios


def rank_matches(values: Tensor, others: Tensor) -> Tensor:
    """For each of `values` [P] the index [P] int64 of the one of `others` [P] that has the same rank.

    What "Alignment via optimal transport" (AOT) compares, arXiv 2406.05882 section 3: the k-th lowest of one with the
    k-th lowest of the other, whichever pairs they belong to.
    """
    matches = torch.empty_like(values, dtype=torch.int64)
    matches[torch.argsort(values, stable=True)] = torch.argsort(others, stable=True)
    return matches


def _preference_loss(x: Tensor, label_smoothing: float) -> Tensor:
    """The smoothed `-log sigmoid(x)`."""
    if not label_smoothing:
        return -F.logsigmoid(x)
    return -(1 - label_smoothing) * F.logsigmoid(x) - label_smoothing * F.logsigmoid(-x)


def _log_odds(logprobs: Tensor) -> Tensor:
    """`log p - log(1 - p)`; a p that is 1 is taken as the next lower number, with its gradient."""
    below = logprobs.detach().clamp(max=-torch.finfo(logprobs.dtype).eps)
    logprobs = logprobs + (below - logprobs.detach())
    # log(1 - exp(x)): the form that is precise for large p, and the one for small p
    log1mexp = torch.where(
        logprobs > -math.log(2), torch.log(-torch.expm1(logprobs)), torch.log1p(-torch.exp(logprobs))
    )
    return logprobs - log1mexp
