"""Formulas with a derivative written out: equal to the plain formula, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reallm.model.layers import ACTIVATION_FUNCTIONS
from reallm.model.ops import FEW_TOKENS, gated, rms_norm, rotate


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def angles(n_tokens, dim, dtype=torch.float64):
    half = torch.arange(n_tokens, dtype=dtype)[:, None, None] * torch.linspace(1, 0.01, dim // 2, dtype=dtype)
    full = torch.cat((half, half), dim=-1)
    return full.cos(), full.sin()


def plain_rotation(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@pytest.mark.parametrize("shape", [(5, 6), (1, 6), (0, 6), (4, 3, 6)])
def test_rms_norm_is_its_formula_and_its_gradient_that_of_finite_differences(shape):
    x, weight = randn(*shape), randn(6, seed=1)
    written_out = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-2), written_out, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-2), (x, weight))


@pytest.mark.parametrize("n", [64, 576])
def test_rms_norm_in_single_precision_is_as_exact_as_that_of_torch(n):
    x, weight, cotangent = (randn(200, n, dtype=torch.float32, seed=seed) for seed in range(3))
    weight = weight[0].detach().requires_grad_()
    exact_x, exact_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = F.rms_norm(exact_x, (n,), exact_weight, 1e-6)
    ours, theirs = rms_norm(x, weight, 1e-6), F.rms_norm(x, (n,), weight, 1e-6)
    torch.testing.assert_close(ours, theirs, rtol=5e-7, atol=0)  # a unit or two in the last of 24 bits
    wanted = torch.autograd.grad(exact, (exact_x, exact_weight), cotangent.double())
    gradients = (torch.autograd.grad(normed, (x, weight), cotangent) for normed in (ours, theirs))
    for mine, of_torch, want in zip(*gradients, wanted, strict=True):
        assert (mine - want).abs().max() < 2 * (of_torch - want).abs().max() + 1e-6


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_a_gated_activation_is_its_formula_bit_for_bit(name):
    activation = ACTIVATION_FUNCTIONS[name]
    for dtype in (torch.float32, torch.bfloat16):
        gate, up, cotangent = (randn(7, 12, dtype=dtype, seed=seed) for seed in range(3))
        ours, plain = gated(gate, up, activation), activation(gate) * up
        assert torch.equal(ours, plain)
        gradients = (torch.autograd.grad(out, (gate, up), cotangent) for out in (ours, plain))
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients, strict=True))
    assert torch.autograd.gradcheck(lambda gate, up: gated(gate, up, activation), (randn(3, 4), randn(3, 4, seed=1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_is_its_formula_bit_for_bit(dtype):
    cos, sin = (table.to(dtype) for table in angles(9, 8, torch.float32))
    x, cotangent = randn(9, 3, 8, dtype=dtype), randn(9, 3, 8, dtype=dtype, seed=1)
    ours, plain = rotate(x, cos, sin), plain_rotation(x, cos, sin)
    assert torch.equal(ours, plain)
    mine, theirs = (torch.autograd.grad(out, x, cotangent)[0] for out in (ours, plain))
    assert torch.equal(mine, theirs)
    assert torch.autograd.gradcheck(lambda x: rotate(x, *angles(4, 6)), randn(4, 2, 6))


@pytest.mark.parametrize("n_tokens", [9, FEW_TOKENS, FEW_TOKENS + 1])
def test_without_gradients_the_numbers_are_the_same(n_tokens):
    x, weight = randn(n_tokens, 3, 8, dtype=torch.float32), randn(8, dtype=torch.float32)
    formulas = [
        lambda: rms_norm(x, weight, 1e-5),
        lambda: gated(x, x, F.silu),
        lambda: rotate(x, *angles(n_tokens, 8, torch.float32)),
    ]
    for formula in formulas:
        with torch.no_grad():
            alone = formula()
        assert torch.equal(formula(), alone)


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: rms_norm(x, torch.ones(6, dtype=x.dtype), 1e-5),
        lambda x: gated(x, x, F.silu),
        lambda x: rotate(x, *angles(4, 6)),
    ],
)
def test_a_second_derivative_is_refused(formula):
    x = randn(4, 2, 6)
    (gradient,) = torch.autograd.grad(formula(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
