"""Formulas with a derivative written out: equal to the plain formula, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reallm.model.activations import ACTIVATION_FUNCTIONS
from reallm.model.config import ReaLModelConfig
from reallm.model.layers import make_norm, make_qk_norm
from reallm.model.ops import FEW_TOKENS, gated, rms_norm, rotate
from reallm.model.rope import Rotation


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def angles(n_tokens, dim, dtype=torch.float64):
    half = torch.arange(n_tokens, dtype=dtype)[:, None, None] * torch.linspace(1, 0.01, dim // 2, dtype=dtype)
    full = torch.cat((half, half), dim=-1)
    return full.cos(), full.sin()


def plain_rotation(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def angles_of_pairs(n_tokens, dim, dtype=torch.float64):
    cos, sin = angles(n_tokens, dim, dtype)
    return cos[..., : dim // 2].repeat_interleave(2, -1), sin[..., : dim // 2].repeat_interleave(2, -1)


def plain_rotation_of_pairs(x, cos, sin):
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


@pytest.mark.parametrize("shape", [(5, 6), (1, 6), (0, 6), (4, 3, 6)])
def test_rms_norm_is_its_formula_and_its_gradient_that_of_finite_differences(shape):
    x, weight = randn(*shape), randn(6, seed=1)
    written_out = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-2), written_out, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-2), (x, weight))


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("has_weight", [True, False])
def test_rms_norm_with_an_offset_or_without_a_weight(has_weight, offset):
    x, weight = randn(5, 6), randn(6, seed=1) if has_weight else None
    written_out = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt()
    if weight is not None:
        written_out = written_out * (weight + offset)
    torch.testing.assert_close(rms_norm(x, weight, 1e-2, offset), written_out, rtol=1e-14, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 1e-2, offset), written_out.detach(), rtol=1e-14, atol=1e-14)
    inputs = (x,) if weight is None else (x, weight)
    assert torch.autograd.gradcheck(lambda x, weight=None: rms_norm(x, weight, 1e-2, offset), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_weight_beside_its_offset_is_not_lost_in_half_precision(dtype):
    x = randn(50, 64, dtype=dtype)
    weight = (torch.linspace(-4e-3, 4e-3, 64)).to(dtype)  # next to 1, bfloat16 has steps of 0.8 %
    exact = F.rms_norm(x.double(), (64,), weight.double() + 1.0, 1e-6)
    error = (rms_norm(x, weight, 1e-6, 1.0).double() - exact).abs() / exact.abs().clamp(min=1e-6)
    assert error.max() < 1.1 * torch.finfo(dtype).eps  # rounded twice, by half a unit each time


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_for_each_head_is_that_of_each_head_alone(norm, bias, offset):
    config = ReaLModelConfig(1, 16, 3, 3, 4, 16, 20, 32, norm=norm, qk_norm="per_head", norm_offset=offset)
    layer = make_qk_norm(config.replace(qk_norm_bias=bias), 3).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(randn(3, 4, seed=seed))
    x = randn(5, 3, 4, seed=7)
    each = make_qk_norm(config.replace(qk_norm="head", qk_norm_bias=bias), 3).double()
    heads = []
    for head in range(3):
        values = {name: parameter[head] for name, parameter in layer.named_parameters()}
        heads.append(torch.func.functional_call(each, values, x[:, head]))
    expected = torch.stack(heads, dim=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-13)
    inputs = (x, *layer.parameters())
    got, want = (torch.autograd.grad(out.square().sum(), inputs) for out in (layer(x), expected))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"norm_offset": 1.0}, {"norm_bias": True}, {"norm_weight": False}])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_is_its_formula(norm, changes):
    config = ReaLModelConfig(1, 16, 2, 2, 8, 16, 20, 32, norm=norm, norm_eps=1e-3).replace(**changes)
    layer, x = make_norm(config).double(), randn(5, 16)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(randn(16, seed=seed))
    centred = x if norm == "rms" else x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    if config.norm_weight:
        expected = expected * (layer.weight + config.norm_offset)
    if config.norm_bias:
        expected = expected + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-13)
    inputs = (x, *layer.parameters())
    got, want = (torch.autograd.grad(out.square().sum(), inputs) for out in (layer(x), expected))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_of_neighbouring_dims_is_its_formula_bit_for_bit(dtype):
    cos, sin = (table.to(dtype) for table in angles_of_pairs(9, 8, torch.float32))
    x, cotangent = randn(9, 3, 8, dtype=dtype), randn(9, 3, 8, dtype=dtype, seed=1)
    ours, plain = rotate(x, cos, sin, interleaved=True), plain_rotation_of_pairs(x, cos, sin)
    assert torch.equal(ours, plain)
    mine, theirs = (torch.autograd.grad(out, x, cotangent)[0] for out in (ours, plain))
    assert torch.equal(mine, theirs)
    assert torch.autograd.gradcheck(lambda x: rotate(x, *angles_of_pairs(4, 6), interleaved=True), randn(4, 2, 6))


def test_pairs_of_neighbouring_dims_turn_by_their_angle():
    angle = torch.tensor([[0.3, 1.1], [0.6, 2.2]], dtype=torch.float64)
    x = randn(2, 3, 4)
    table = angle.repeat_interleave(2, dim=-1)[:, None]
    turned = torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.view_as_real(turned).flatten(-2)
    torch.testing.assert_close(rotate(x, table.cos(), table.sin(), interleaved=True), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("n_tokens", [9, FEW_TOKENS + 1])
def test_a_partial_rotation_leaves_the_rest_as_it_is(n_tokens, interleaved):
    cos, sin = (angles_of_pairs if interleaved else angles)(n_tokens, 4)
    rotation, x = Rotation(cos, sin, interleaved), randn(n_tokens, 3, 10)
    expected = torch.cat((rotate(x[..., :4], cos, sin, interleaved=interleaved), x[..., 4:]), dim=-1)
    assert torch.equal(rotation(x), expected)
    with torch.no_grad():
        assert torch.equal(rotation(x), expected)
    if n_tokens == 9:
        assert torch.autograd.gradcheck(rotation, x)


@pytest.mark.parametrize("n_tokens", [9, FEW_TOKENS, FEW_TOKENS + 1])
def test_without_gradients_the_numbers_are_the_same(n_tokens):
    x, weight = randn(n_tokens, 3, 8, dtype=torch.float32), randn(8, dtype=torch.float32)
    formulas = [
        lambda: rms_norm(x, weight, 1e-5),
        lambda: gated(x, x, F.silu),
        lambda: rms_norm(x, weight, 1e-5, 1.0),
        lambda: rotate(x, *angles(n_tokens, 8, torch.float32)),
        lambda: rotate(x, *angles_of_pairs(n_tokens, 8, torch.float32), interleaved=True),
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
