"""Losses against their formulas, written out independently with 40 digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from reallm.algorithms import losses

mpmath.mp.dps = 40
BETA, EPS, TAU, GAMMA = 0.3, 0.1, 0.05, 0.4

Pair = Callable[[Any, Any], Any]


def log_sigmoid(x: Any) -> Any:
    return -mpmath.log1p(mpmath.exp(-x))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def mixture(x: Any) -> Any:
    share = sigmoid(x / mpf(TAU))
    return -(1 - share) * log_sigmoid(x) + share * mpmath.exp(-x)


def divergence(x: Any) -> Any:
    q, eps = sigmoid(x), mpf(EPS)
    return q * mpmath.log(q / (1 - eps)) + (1 - q) * mpmath.log((1 - q) / eps)


def smoothed(x: Any) -> Any:
    return -(1 - mpf(EPS)) * log_sigmoid(x) - mpf(EPS) * log_sigmoid(-x)


def odds(x: Any) -> Any:
    return mpmath.exp(x) / (1 - mpmath.exp(x))


HALF = 1 / (2 * mpf(BETA))
B = mpf(BETA)
LN2 = math.log(2)

PAIR_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Pair, float]] = {
    # the loss, its formula, and its value where policy and reference are equal
    "sigmoid": (lambda c, r: losses.sigmoid_loss(c, r, BETA), lambda c, r: -log_sigmoid(B * (c - r)), LN2),
    "cdpo": (lambda c, r: losses.sigmoid_loss(c, r, BETA, EPS), lambda c, r: smoothed(B * (c - r)), LN2),
    "hinge": (lambda c, r: losses.hinge_loss(c, r, BETA), lambda c, r: max(mpf(0), 1 - B * (c - r)), 1.0),
    "ipo": (lambda c, r: losses.ipo_loss(c, r, BETA), lambda c, r: (c - r - HALF) ** 2, (0.5 / BETA) ** 2),
    "robust": (
        lambda c, r: losses.robust_loss(c, r, BETA, EPS),
        lambda c, r: (
            (-(1 - mpf(EPS)) * log_sigmoid(B * (c - r)) + mpf(EPS) * log_sigmoid(-B * (c - r))) / (1 - 2 * mpf(EPS))
        ),
        LN2,
    ),
    "exo_pair": (
        lambda c, r: losses.exo_pair_loss(c, r, BETA, EPS),
        lambda c, r: divergence(B * (c - r)),
        -LN2 - (math.log(1 - EPS) + math.log(EPS)) / 2,
    ),
    "nca_pair": (
        lambda c, r: losses.nca_pair_loss(c, r, BETA),
        lambda c, r: -log_sigmoid(B * c) - (log_sigmoid(-B * c) + log_sigmoid(-B * r)) / 2,
        2 * LN2,
    ),
    "bco_pair": (
        lambda c, r: losses.bco_pair_loss(c, r, BETA),
        lambda c, r: -log_sigmoid(B * c) - log_sigmoid(-B * r),
        2 * LN2,
    ),
    "sppo_hard": (
        lambda c, r: losses.sppo_hard_loss(c, r, BETA),
        lambda c, r: (c - HALF) ** 2 + (r + HALF) ** 2,
        0.5 / BETA**2,
    ),
    "apo_zero": (
        lambda c, r: losses.apo_zero_loss(c, r, BETA),
        lambda c, r: 1 - sigmoid(B * c) + sigmoid(B * r),
        1.0,
    ),
    "apo_down": (
        lambda c, r: losses.apo_down_loss(c, r, BETA),
        lambda c, r: sigmoid(B * c) + 1 - sigmoid(B * (c - r)),
        1.0,
    ),
    "discopop": (
        lambda c, r: losses.discopop_loss(c, r, BETA, TAU),
        lambda c, r: mixture(B * (c - r)),
        (LN2 + 1) / 2,
    ),
    "simpo": (
        lambda c, r: losses.simpo_loss(c, r, BETA, GAMMA),
        lambda c, r: -log_sigmoid(B * (c - r) - mpf(GAMMA)),
        math.log1p(math.exp(GAMMA)),
    ),
    "reward": (
        lambda c, r: losses.reward_model_loss(c, r, torch.full_like(c, 0.5), 0.01),
        lambda c, r: -log_sigmoid(c - r - mpf(0.5)) + mpf(0.01) * (c + r) ** 2,
        math.log1p(math.exp(0.5)),
    ),
}
POINTS = [(0.0, 0.0), (1.5, -2.0), (-3.0, 0.25), (4.0, 4.0), (30.0, -50.0), (-200.0, 100.0), (0.01, 0.02)]


def pairs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    chosen, rejected = torch.tensor(POINTS, dtype=dtype).T
    return chosen.clone().requires_grad_(), rejected.clone().requires_grad_()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_loss_is_its_formula(name: str) -> None:
    loss, formula, _ = PAIR_LOSSES[name]
    if name == "discopop":  # exp(-x) of the formula is beyond float64 at the lowest point, and the loss is not
        assert loss(*pairs()).isfinite().all()
    result = loss(*pairs()).tolist()
    expected = [float(formula(mpf(c), mpf(r))) for c, r in POINTS]
    assert result == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_gradient_is_that_of_the_formula(name: str) -> None:
    loss, formula, _ = PAIR_LOSSES[name]
    chosen, rejected = pairs()
    of_chosen, of_rejected = torch.autograd.grad(loss(chosen, rejected).sum(), (chosen, rejected), allow_unused=True)
    for i, (c, r) in enumerate(POINTS):
        by_c = float(mpmath.diff(lambda x, r=r: formula(x, mpf(r)), mpf(c)))
        by_r = float(mpmath.diff(lambda x, c=c: formula(mpf(c), x), mpf(r)))
        assert of_chosen[i].item() == pytest.approx(by_c, rel=1e-9, abs=1e-12), (name, c, r)
        assert of_rejected[i].item() == pytest.approx(by_r, rel=1e-9, abs=1e-12), (name, c, r)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_value_where_policy_and_reference_are_equal(name: str) -> None:
    loss, _, expected = PAIR_LOSSES[name]
    zero = torch.zeros(1, dtype=torch.float64)
    assert loss(zero, zero).item() == pytest.approx(expected, rel=1e-14)


def test_no_two_losses_have_the_same_gradient() -> None:
    chosen = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-0.4], dtype=torch.float64, requires_grad=True)
    seen: dict[tuple[float, ...], str] = {}
    for name, (loss, _, _) in PAIR_LOSSES.items():
        gradient = torch.autograd.grad(loss(chosen, rejected).sum(), (chosen, rejected))
        key = tuple(round(each.item(), 9) for each in gradient)
        assert any(key)
        assert key not in seen, (name, seen.get(key))
        seen[key] = name


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("size", [1e3, 1e4])
def test_extreme_differences_do_not_overflow_in_float32(name: str, size: float) -> None:
    loss = PAIR_LOSSES[name][0]
    for c, r in [(size, -size), (-size, size), (size, size), (-size, -size)]:
        chosen, rejected = torch.tensor([c], requires_grad=True), torch.tensor([r], requires_grad=True)
        value = loss(chosen, rejected)
        value.sum().backward()
        assert value.dtype == torch.float32
        assert value.isfinite().all(), (c, r)
        assert chosen.grad is not None
        assert chosen.grad.isfinite().all(), (c, r)
        assert rejected.grad is None or rejected.grad.isfinite().all(), (c, r)


def test_limits() -> None:
    far, zero = torch.tensor([1e4], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert losses.sigmoid_loss(far, -far, 1.0).item() == 0
    assert losses.sigmoid_loss(-far, far, 0.5).item() == 1e4  # linear
    assert losses.hinge_loss(far, zero, 1.0).item() == 0
    assert losses.robust_loss(zero + 1, zero, BETA, 0.0).equal(losses.sigmoid_loss(zero + 1, zero, BETA))
    assert losses.sigmoid_loss(zero + 1, zero, BETA, 0.5).equal(losses.sigmoid_loss(zero, zero + 1, BETA, 0.5))
    assert losses.reward_model_loss(zero, zero).item() == pytest.approx(LN2)
    with_margins = losses.reward_model_loss(zero + 3, zero, zero + 1)
    assert with_margins.equal(losses.reward_model_loss(zero + 2, zero))


@pytest.mark.parametrize(("c", "r"), [(-0.5, -1.5), (-1e-3, -2.0), (-40.0, -0.1), (-0.69, -0.7), (-3.0, -3.0)])
def test_the_odds_ratio_is_its_formula(c: float, r: float) -> None:
    chosen = torch.tensor([c], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    loss = losses.odds_ratio_loss(chosen, rejected)

    def formula(x: Any, y: Any) -> Any:
        return -log_sigmoid(mpmath.log(odds(x) / odds(y)))

    assert loss.item() == pytest.approx(float(formula(mpf(c), mpf(r))), rel=1e-12)
    of_chosen, of_rejected = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert of_chosen.item() == pytest.approx(float(mpmath.diff(lambda x: formula(x, mpf(r)), mpf(c))), rel=1e-9)
    assert of_rejected.item() == pytest.approx(float(mpmath.diff(lambda y: formula(mpf(c), y), mpf(r))), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_odds_of_a_certain_answer_are_finite_and_still_pushed(dtype: torch.dtype) -> None:
    for c, r in [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e4, 0.0), (-1e4, -1e4)]:
        chosen = torch.tensor([c], dtype=dtype, requires_grad=True)
        rejected = torch.tensor([r], dtype=dtype, requires_grad=True)
        loss = losses.odds_ratio_loss(chosen, rejected)
        of_chosen, of_rejected = torch.autograd.grad(loss.sum(), (chosen, rejected))
        assert torch.cat([loss, of_chosen, of_rejected]).isfinite().all(), (c, r)
        assert of_chosen.item() < 0 < of_rejected.item(), (c, r)


def test_kto_is_its_formula_and_weighs_good_and_bad_answers() -> None:
    ratios = torch.tensor([0.5, -0.5, 2.0, -700.0], dtype=torch.float64)
    labels = torch.tensor([True, True, False, False])
    kl = 0.3
    found = losses.kto_loss(ratios, labels, torch.tensor(kl, dtype=torch.float64), BETA, 1.5, 0.8)
    expected = [
        1.5 * float(1 - sigmoid(B * (mpf(0.5) - mpf(kl)))),
        1.5 * float(1 - sigmoid(B * (mpf(-0.5) - mpf(kl)))),
        0.8 * float(1 - sigmoid(B * (mpf(kl) - 2))),
        0.8 * float(1 - sigmoid(B * (mpf(kl) + 700))),
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    zero = torch.zeros(2, dtype=torch.float64)
    assert losses.kto_loss(zero, torch.tensor([True, False]), 0.0, BETA, 1.5, 0.8).tolist() == [0.75, 0.4]


def test_the_reference_point_of_kto_is_a_mean_of_at_least_0_without_gradient() -> None:
    ratios = torch.tensor([1.0, 2.0], requires_grad=True)
    assert losses.kto_reference_point(ratios).item() == 1.5
    assert losses.kto_reference_point(-ratios).item() == 0
    assert not losses.kto_reference_point(ratios).requires_grad


@pytest.mark.parametrize("x", [0.0, 0.7, -2.0, 20.0, -20.0])
def test_scores_of_f_divergences_are_derivatives(x: float) -> None:
    t, alpha = mpmath.exp(mpf(x)), mpf(0.5)
    expected = {
        "reverse_kl": mpmath.log(t),
        "forward_kl": 1 - 1 / t,
        "js_divergence": mpmath.log(2 * t / (1 + t)),
        "alpha_divergence": (t ** (alpha - 1) - 1) / (alpha - 1),
    }
    ratio = torch.tensor([x], dtype=torch.float64)
    for name, value in expected.items():
        assert losses.f_divergence_scores(ratio, name).item() == pytest.approx(float(value), rel=1e-12, abs=1e-15)  # type: ignore[arg-type]
    near = losses.f_divergence_scores(ratio, "alpha_divergence", 1 + 1e-5)
    assert near.item() == pytest.approx(losses.f_divergence_scores(ratio, "alpha_divergence", 1.0).item(), abs=3e-3)


@pytest.mark.parametrize("name", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_scores_of_f_divergences_do_not_overflow(name: str) -> None:
    ratios = torch.tensor([-1e4, 1e4], requires_grad=True)
    scores = losses.f_divergence_scores(ratios, name)  # type: ignore[arg-type]
    scores.sum().backward()
    assert ratios.grad is not None
    assert torch.cat([scores, ratios.grad]).isfinite().all()


def test_rank_matches_pair_the_kth_lowest_with_the_kth_lowest() -> None:
    values, others = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([10.0, 30.0, 20.0])
    matches = losses.rank_matches(values, others)
    assert matches.tolist() == [1, 0, 2]
    assert others[matches].sort().values.equal(others.sort().values)
