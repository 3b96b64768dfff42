"""Grouped forward and backward passes of all experts, after the router has assigned tokens to them.

Shapes: T tokens, E hidden, X experts, F intermediate size of one, k experts a token, N = T * k rows, sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from reallm.model.moe.grouped_linear import GroupedLinear, KernelLinear, LoopedLinear
from reallm.model.ops import ActivationFunction


@dataclass(frozen=True, eq=False)
class Assignment:
    """Assignment of tokens to experts, as rows sorted by expert. Tokens that chose (2, 0) and (0, 1) make four rows:

    expert  0 0 1 2        token  0 1 1 0        row_of  [[3, 0], [1, 2]]
    """

    order: Tensor
    """Index [N] of each row into `chosen.flatten()`."""
    row_of: Tensor
    """Row [T, k] of each choice."""
    ends: Tensor
    """End [X] int32 of the rows of each expert."""
    exact: bool = False
    """Whether rows are computed so that they do not depend on each other, bit for bit."""

    @classmethod
    def of(cls, chosen: Tensor, n_experts: int) -> Assignment:
        """Make the assignment from the expert indices [T, k] that each token chose."""
        experts, order = chosen.flatten().sort(stable=True)
        rows = torch.arange(len(order), device=order.device)
        row_of = torch.empty_like(order).scatter_(0, order, rows).view_as(chosen)
        each = torch.arange(n_experts, device=experts.device)
        return cls(order, row_of, torch.searchsorted(experts, each, right=True, out_int32=True))

    @cached_property
    def tokens(self) -> Tensor:
        """Token [N] of each row."""
        return self.order // self.row_of.shape[1]

    @property
    def counts(self) -> Tensor:
        """Number of rows [X] int32 of each expert."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def linear(self, x: Tensor, weight: Tensor) -> GroupedLinear:
        """The grouped linear implementation for rows like `x` and weights like `weight`."""
        if KernelLinear.fits(x, weight):
            return KernelLinear(self.ends)
        ends = self.ends.tolist() if not isinstance(self.ends, FakeTensor) else self._even_ends()
        return LoopedLinear.of([end - start for start, end in pairwise([0, *ends])], exact=self.exact)

    def _even_ends(self) -> list[int]:
        """Ends of segments that are as even as possible, for fake tensors, as in the memory estimate."""
        n_rows, n_experts = len(self.order), len(self.ends)
        return [(expert + 1) * n_rows // n_experts for expert in range(n_experts)]


def grouped_expert_mlp(
    x: Tensor,
    chosen: Assignment,
    weights: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: ActivationFunction,
) -> Tensor:
    """Sum over each token's experts of `weight * down_e(activation(gate_e(x)) * up_e(x))`.

    Differentiable once. `gate_e(x)` and `up_e(x)` are saved for the backward pass, 2F numbers for each row.

    Args:
        x: [T, E].
        chosen: the assignment of tokens to experts.
        weights: [T, k], dtype of `x`.
        gate, up: [X, F, E].
        down: [X, E, F].
        activation: elementwise.

    Returns:
        [T, E], dtype of `x`.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _GroupedExpertMLP.apply(x, chosen, weights, gate, up, down, activation))
    return _forward(x, chosen, weights, gate, up, down, activation)[0]


def _forward(
    x: Tensor, chosen: Assignment, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The output [T, E], and the outputs of `gate` and `up`, [N, F] each."""
    linear = chosen.linear(x, gate)
    rows = x.index_select(0, chosen.tokens)
    gates, ups = linear.outputs(rows, gate), linear.outputs(rows, up)
    outputs = linear.outputs(activation(gates).mul_(ups), down, out=rows)
    return F.embedding_bag(chosen.row_of, outputs, per_sample_weights=weights, mode="sum"), gates, ups


class _GroupedExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chosen: Assignment,
        weights: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        activation: ActivationFunction,
    ) -> Tensor:
        out, gates, ups = _forward(x, chosen, weights, gate, up, down, activation)
        ctx.save_for_backward(x, weights, gate, up, down, gates, ups)
        ctx.chosen, ctx.activation = chosen, activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gate, up, down, gates, ups = ctx.saved_tensors
        chosen: Assignment = ctx.chosen
        needs_gate, needs_up, needs_down = ctx.needs_input_grad[3:6]
        linear = chosen.linear(x, gate)
        row_weights = weights.flatten().index_select(0, chosen.order).unsqueeze(1)
        with torch.enable_grad():
            gates = gates.detach().requires_grad_()
            activated = ctx.activation(gates)
        inner = activated.detach() * ups  # the input of `down`
        grads = grad.index_select(0, chosen.tokens)
        grad_inner = linear.input_grads(grads, down)
        # weight * down(inner): the gradient of the weight is down(inner) . grad = inner . down^T(grad)
        grad_weights = (grad_inner * inner).sum(dim=1)
        grad_inner.mul_(row_weights)
        grad_down = linear.weight_grads(grads, inner.mul_(row_weights)) if needs_down else None
        (grad_gates,) = torch.autograd.grad(activated, gates, torch.mul(grad_inner, ups, out=inner))
        grad_ups = activated.detach().mul_(grad_inner)
        grad_rows = linear.input_grads(grad_ups, up, out=linear.input_grads(grad_gates, gate))
        grad_x = F.embedding_bag(chosen.row_of, grad_rows, mode="sum")
        rows = x.index_select(0, chosen.tokens) if needs_gate or needs_up else None
        return (
            grad_x,
            None,
            grad_weights.index_select(0, chosen.row_of.flatten()).view_as(weights),
            linear.weight_grads(grad_gates, rows) if needs_gate and rows is not None else None,
            linear.weight_grads(grad_ups, rows) if needs_up and rows is not None else None,
            grad_down,
            None,
        )
