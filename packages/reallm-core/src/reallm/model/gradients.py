"""`torch.autograd.grad` and `backward` from gradients that have the shapes of their outputs.

Torch compares the shapes of gradients that it is given by functions that import SymPy, which takes a quarter of a
second in each process. Here the backward pass begins at a number, for which it needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


class _Start(torch.autograd.Function):
    """A number whose backward pass gives the output the gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_empty(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def input_gradients(output: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the inputs that an output was computed from, of which it needs all.

    Args:
        output: the output.
        inputs: tensors that require gradients.
        gradient: the gradient of the output; the same shape.
    """
    return torch.autograd.grad(_start(output, gradient), inputs)


def accumulate_gradients(output: Tensor, gradient: Tensor) -> None:
    """Add to the `grad` of all leaves that an output was computed from.

    Args:
        output: the output.
        gradient: the gradient of the output; the same shape.
    """
    _start(output, gradient).backward()


def _start(output: Tensor, gradient: Tensor) -> Tensor:
    with torch.enable_grad():  # backward passes, which call this, are without
        return cast(Tensor, _Start.apply(output, gradient))
