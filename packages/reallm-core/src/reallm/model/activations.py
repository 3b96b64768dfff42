"""Activation functions by their names in configurations, and exact forms of them.

The kernels of some functions compute the last elements of a tensor by other instructions than the rest, so that an
element's last bit depends on its place. The exact form of such a function consists of operations without that flaw.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from reallm.model.gradients import input_gradients
from reallm.model.ops import ActivationFunction

ACTIVATION_FUNCTIONS: dict[str, ActivationFunction] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "laplace": lambda x: 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0)))),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": torch.clone,  # a new tensor, as other activations return: callers may write to the result
}


def exact_activation(name: str) -> ActivationFunction:
    """The exact form of an activation function; differentiable once."""
    return partial(_exact, name) if name in _FORMS else ACTIVATION_FUNCTIONS[name]


def _gelu(x: Tensor) -> Tensor:
    return x.mul(math.sqrt(0.5)).erf_().add_(1).mul_(x).mul_(0.5)


def _gelu_tanh(x: Tensor) -> Tensor:
    return (x * x).mul_(x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi)).tanh_().add_(1).mul_(x).mul_(0.5)


def _logistic_denominator(x: Tensor, factor: float = 1.0) -> Tensor:
    return x.mul(-factor).exp_().add_(1)


def _softplus(x: Tensor) -> Tensor:
    return x.abs().neg_().exp_().log1p_().add_(F.relu(x))


_FORMS: dict[str, ActivationFunction] = {
    "silu": lambda x: x / _logistic_denominator(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_quick": lambda x: x / _logistic_denominator(x, 1.702),
    "gelu_10": lambda x: _gelu(x).clamp_(-10, 10),
    "mish": lambda x: _softplus(x).tanh_().mul_(x),
    "sigmoid": lambda x: _logistic_denominator(x).reciprocal_(),
}


def _exact(name: str, x: Tensor) -> Tensor:
    return cast(Tensor, _Exact.apply(x, name)) if torch.is_grad_enabled() else _FORMS[name](x)


class _Exact(torch.autograd.Function):
    """Forward by the exact form, backward by the usual one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name = name
        return _FORMS[name](x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (grad_x,) = input_gradients(ACTIVATION_FUNCTIONS[ctx.name](x), [x], grad)
        return grad_x, None
