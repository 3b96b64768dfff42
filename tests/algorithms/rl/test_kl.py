"""Estimates of the KL divergence against the divergence of small distributions, and the controllers of its weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reallm.algorithms.rl.kl import AdaptiveKLController, FixedKLController, KLKind, kl_estimate

POLICY, REF, OLD = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()


def expectation(kind: KLKind, old: Tensor | None = None) -> tuple[float, Tensor]:
    """The mean of the estimate over the tokens of a policy, and its gradient with respect to the policy's logits.

    Args:
        kind: the estimate.
        old: logits of the policy that samples; None: the policy itself.
    """
    logits = POLICY.clone().requires_grad_()
    logprobs, ref = logits.log_softmax(0), REF.log_softmax(0)
    sampling = logprobs.detach() if old is None else old.log_softmax(0)
    estimate = kl_estimate(kind, logprobs, ref, None if old is None else sampling)
    mean = (sampling.exp() * estimate).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return float(mean.detach()), gradient


def divergence(logits: Tensor) -> tuple[float, Tensor]:
    """The divergence of the policy from the reference, and its gradient."""
    logits = logits.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    value = (logprobs.exp() * (logprobs - REF.log_softmax(0))).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return float(value.detach()), gradient


@pytest.mark.parametrize("kind", ["k1", "k3", "k3_unbiased", "k3_straight_through"])
def test_estimates_without_bias(kind: KLKind) -> None:
    assert expectation(kind)[0] == pytest.approx(divergence(POLICY)[0])


@pytest.mark.parametrize("kind", ["k2", "k3_unbiased", "k3_straight_through"])
def test_estimates_with_the_gradient_of_the_divergence(kind: KLKind) -> None:
    torch.testing.assert_close(expectation(kind)[1], divergence(POLICY)[1])


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_estimates_with_another_gradient(kind: KLKind) -> None:
    assert (expectation(kind)[1] - divergence(POLICY)[1]).abs().max() > 0.02


def test_the_ratio_makes_the_estimate_right_off_policy() -> None:
    value, gradient = expectation("k3_unbiased", OLD)
    known, known_gradient = divergence(POLICY)
    assert value == pytest.approx(known)
    torch.testing.assert_close(gradient, known_gradient)


def test_an_adaptive_weight_follows_the_divergence() -> None:
    controller = AdaptiveKLController(0.1, target=6.0, horizon=100.0)
    controller.update(kl=6.6, n_answers=10)
    assert controller.coef == pytest.approx(0.1 * (1 + 0.1 * 10 / 100))
    controller.update(kl=600.0, n_answers=10)
    assert controller.coef == pytest.approx(0.101 * 1.02)
    other = AdaptiveKLController(0.1, target=6.0, horizon=100.0)
    other.load_state(controller.state())
    assert other.coef == controller.coef
    other.update(kl=0.0, n_answers=10)
    assert other.coef == pytest.approx(0.101 * 1.02 * 0.98)


def test_a_fixed_weight_stays_what_it_is() -> None:
    controller = FixedKLController(0.1)
    controller.update(kl=100.0, n_answers=1000)
    controller.load_state(controller.state())
    assert controller.coef == 0.1
