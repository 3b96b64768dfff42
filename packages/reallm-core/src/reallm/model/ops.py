"""RMS norm, gated activation and rotation with hand-written backward passes: fewer passes over memory, less saved.

Each equals its plain formula up to rounding, and is differentiable once. Under `torch.compile`, which fuses operations,
the plain formulas are used.

Shapes: T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from reallm.model.gradients import input_gradients

ActivationFunction = Callable[[Tensor], Tensor]
FEW_TOKENS = 64
"""Number of tokens up to which, as in decoding, fewer calls matter more than fewer passes over memory."""


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * (weight + offset)` over the last dim (Zhang and Sennrich, 2019).

    Computed in at least float32; without `weight` there is no factor. On CUDA torch has a kernel for it; on CPU it is
    nine operations, whose backward pass takes three times as long.
    """
    shape = (x.shape[-1],)
    if weight is None:
        return F.rms_norm(x, shape, None, eps)
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if not on_cpu or torch.compiler.is_compiling():
        if not offset:
            return F.rms_norm(x, shape, weight, eps)
        normed = F.rms_norm(x, shape, None, eps)
        return torch.addcmul(normed * offset, normed, weight)  # `weight + offset` would be rounded in half precision
    if offset:
        weight = weight + offset
    return cast(Tensor, _RMSNorm.apply(x, weight, eps)) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed `x`, and the scale of each vector."""
    normed = x * x
    scale = normed.mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    return torch.mul(x, scale, out=normed).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        scaled = grad * scale
        product = scaled * x
        # d x = scale * (grad * weight) - x * scale^3 * mean(x * grad * weight)
        pull = (product @ weight).unsqueeze(-1).mul_(scale.square()).div_(-x.shape[-1])
        return scaled.mul_(weight).addcmul_(x, pull), product.flatten(0, -2).sum(0), None


def gated(gate: Tensor, up: Tensor, activation: ActivationFunction) -> Tensor:
    """`activation(gate) * up`, saving only `gate` and `up` for the backward pass."""
    if torch.compiler.is_compiling():
        return activation(gate) * up
    if not torch.is_grad_enabled():
        return activation(gate).mul_(up)
    return cast(Tensor, _Gated.apply(gate, up, activation))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: ActivationFunction) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.activation(gate)
        (grad_gate,) = input_gradients(activated, [gate], grad * up)
        return grad_gate, activated.detach().mul_(grad), None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate each pair of dims of `x` [T, H, D] by the angle of `cos` and `sin` [T, 1, D].

    Dims `d` and `d + D/2` form a pair, or with `interleaved` dims `2d` and `2d + 1`.
    """
    is_small = x.shape[0] <= FEW_TOKENS and not torch.is_grad_enabled()
    if torch.compiler.is_compiling() or is_small:
        first, second = _pairs(x, interleaved)
        turned = torch.stack((-second, first), dim=-1).flatten(-2) if interleaved else torch.cat((-second, first), -1)
        return x * cos + turned * sin
    if torch.is_grad_enabled():
        return cast(Tensor, _Rotate.apply(x, cos, sin, interleaved))
    return _rotated(x, cos, sin, interleaved)


def _pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and the second dim of all pairs."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    first, second = x.chunk(2, dim=-1)
    return first, second


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, *, back: bool = False) -> Tensor:
    """`rotate`, or with `back` rotation by the negative angle."""
    rotated = x * cos
    (first, second), (x_first, x_second) = _pairs(rotated, interleaved), _pairs(x, interleaved)
    sin_first, sin_second = _pairs(sin, interleaved)
    # not one fused multiply-add: products are rounded as they are in transformers, bit for bit
    (first.add_ if back else first.sub_)(x_second * sin_first)
    (second.sub_ if back else second.add_)(x_first * sin_second)
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(x, cos, sin, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, ctx.interleaved, back=True), None, None, None
