"""The KL divergence of a policy from a reference: estimates from sampled tokens, and control of its weight.

Shapes: N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

KLKind = Literal["k1", "k2", "k3", "k3_unbiased", "k3_straight_through"]


def kl_estimate(kind: KLKind, logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor | None = None) -> Tensor:
    """Estimates [N] of KL(policy || reference), in nats, from tokens that the policy has sampled.

    With Δ = logprobs - ref_logprobs:

    - `k1` = Δ, without bias. Its gradient is 0 on average: for rewards, not for a loss.
    - `k2` = Δ²/2, biased; its gradient on policy is that of the divergence.
    - `k3` = exp(-Δ) - 1 + Δ, without bias and at least 0; its gradient is that of KL(reference || policy).
    - `k3_unbiased` is k3 times the ratio exp(logprobs - old_logprobs), without bias and with the gradient of the
      divergence also off policy (DeepSeek-V3.2, arXiv 2512.02556).
    - `k3_straight_through` has the value of k3 and the gradient of k2.

    Source: J. Schulman, "Approximating KL divergence", 2020.

    Args:
        kind: the estimate.
        logprobs: log-probabilities [N] of the tokens under the policy; differentiable.
        ref_logprobs: those [N] under the reference.
        old_logprobs: those [N] under the policy that has sampled them, for `k3_unbiased`; None: the policy as it is.
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    k3 = (-difference).expm1() + difference
    if kind == "k3":
        return k3
    if kind == "k3_unbiased":
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        return (logprobs - old).exp() * k3
    k2 = difference.square() / 2
    return k2 + (k3 - k2).detach()


@dataclass
class FixedKLController:
    """A weight of the KL divergence that stays what it is."""

    coef: float
    """The weight."""

    def update(self, kl: float, n_answers: int) -> None:
        """Does nothing."""

    def state(self) -> dict[str, float]:
        """Nothing: the configuration has it."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Does nothing."""


@dataclass
class AdaptiveKLController:
    """A weight that rises if the KL divergence is above its target and falls if it is below (arXiv 1909.08593, 2.2)."""

    coef: float
    """The weight now."""
    target: float
    """KL divergence of whole answers, in nats: the sum over an answer's tokens, as a mean over answers."""
    horizon: float
    """Answers in which a divergence that is 20 % or more off changes the weight by about 20 %."""

    def update(self, kl: float, n_answers: int) -> None:
        """Change the weight after a step.

        Args:
            kl: divergence of whole answers in the step, in nats.
            n_answers: number of answers in the step.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n_answers / self.horizon

    def state(self) -> dict[str, float]:
        """The weight."""
        return {"coef": self.coef}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore it."""
        self.coef = state["coef"]
