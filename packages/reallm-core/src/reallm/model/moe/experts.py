"""Grouped forward and backward passes of all experts, after the router has assigned tokens to them.

Shapes: T tokens, E hidden, X experts, F intermediate size of one, k experts a token, N = T * k rows, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from reallm.model.gradients import input_gradients
from reallm.model.moe.grouped_linear import GroupedLinear, KernelLinear, LoopedLinear


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
            return KernelLinear(self.ends, len(self.order))
        return self._looped

    @cached_property
    def _looped(self) -> LoopedLinear:
        """Made once, since to read `ends` waits for a GPU."""
        ends = self.ends.tolist() if not isinstance(self.ends, FakeTensor) else self._even_ends()
        return LoopedLinear.of([end - start for start, end in pairwise([0, *ends])], exact=self.exact)

    def _even_ends(self) -> list[int]:
        """Ends of segments that are as even as possible, for fake tensors, as in the memory estimate."""
        n_rows, n_experts = len(self.order), len(self.ends)
        return [(expert + 1) * n_rows // n_experts for expert in range(n_experts)]


GatedActivation = Callable[[Tensor, Tensor], Tensor]
"""Function of the outputs of `gate` and `up`, elementwise."""


class ExpertParameters(NamedTuple):
    """The projections of all experts: stacked weights, and biases that may be missing."""

    gate: Tensor
    """[X, F, E], and so is `up`."""
    up: Tensor
    down: Tensor
    """[X, E, F]."""
    gate_bias: Tensor | None = None
    """[X, F], and so is `up_bias`."""
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    """[X, E]."""


def grouped_expert_mlp(
    x: Tensor, chosen: Assignment, weights: Tensor, parameters: ExpertParameters, activation: GatedActivation
) -> Tensor:
    """Sum over each token's experts of `weight * down_e(activation(gate_e(x), up_e(x)))`.

    Differentiable once. `gate_e(x)` and `up_e(x)` are saved for the backward pass, 2F numbers for each row.

    Args:
        x: [T, E].
        chosen: the assignment of tokens to experts.
        weights: [T, k], dtype of `x`.
        parameters: the parameters of the experts, dtype of `x`.
        activation: function without parameters, [N, F] and [N, F] -> [N, F].

    Returns:
        [T, E], dtype of `x`.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _GroupedExpertMLP.apply(x, chosen, weights, activation, *parameters))
    return _forward(x, chosen, weights, activation, parameters)[0]


def _forward(
    x: Tensor, chosen: Assignment, weights: Tensor, activation: GatedActivation, of: ExpertParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """The output [T, E], and the outputs of `gate` and `up`, [N, F] each."""
    linear = chosen.linear(x, of.gate)
    rows = x.index_select(0, chosen.tokens)
    gates, ups = linear.outputs(rows, of.gate), linear.outputs(rows, of.up)
    _add_bias(linear, gates, of.gate_bias)
    _add_bias(linear, ups, of.up_bias)
    outputs = linear.outputs(activation(gates, ups), of.down, out=rows)
    _add_bias(linear, outputs, of.down_bias)
    return F.embedding_bag(chosen.row_of, outputs, per_sample_weights=weights, mode="sum"), gates, ups


def _add_bias(linear: GroupedLinear, outputs: Tensor, bias: Tensor | None) -> None:
    """Add each expert's bias to its rows, in place."""
    if bias is not None:
        outputs.add_(linear.for_rows(bias))


class _GroupedExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chosen: Assignment,
        weights: Tensor,
        activation: GatedActivation,
        *parameters: Tensor | None,
    ) -> Tensor:
        of = ExpertParameters(*cast(Any, parameters))
        out, gates, ups = _forward(x, chosen, weights, activation, of)
        ctx.save_for_backward(x, weights, gates, ups, of.gate, of.up, of.down, of.down_bias)
        ctx.chosen, ctx.activation = chosen, activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gates, ups, gate, up, down, down_bias = ctx.saved_tensors
        chosen: Assignment = ctx.chosen
        needs = ExpertParameters(*ctx.needs_input_grad[4:])
        linear = chosen.linear(x, gate)
        row_weights = weights.flatten().index_select(0, chosen.order).unsqueeze(1)
        with torch.enable_grad():
            gates, ups = gates.detach().requires_grad_(), ups.detach().requires_grad_()
            activated = ctx.activation(gates, ups)
        inner = activated.detach()  # the input of `down`
        grads = grad.index_select(0, chosen.tokens)
        grad_inner = linear.input_grads(grads, down)
        # weight * down(inner): the gradient of the weight is down(inner) . grad = inner . down^T(grad)
        grad_weights = (grad_inner * inner).sum(dim=1)
        if down_bias is not None:
            grad_weights += (grads * linear.for_rows(down_bias)).sum(dim=1)
        if needs.down or needs.down_bias:
            grads.mul_(row_weights)  # now those of the outputs of `down`
        grad_down = linear.weight_grads(grads, inner) if needs.down else None
        grad_down_bias = linear.bias_grads(grads) if needs.down_bias else None
        del grads
        grad_gates, grad_ups = input_gradients(activated, (gates, ups), grad_inner.mul_(row_weights))
        del activated, inner, grad_inner
        grad_rows = linear.input_grads(grad_ups, up, out=linear.input_grads(grad_gates, gate))
        grad_x = F.embedding_bag(chosen.row_of, grad_rows, mode="sum")
        rows = x.index_select(0, chosen.tokens) if needs.gate or needs.up else None
        return (
            grad_x,
            None,
            grad_weights.index_select(0, chosen.row_of.flatten()).view_as(weights),
            None,
            linear.weight_grads(grad_gates, rows) if needs.gate and rows is not None else None,
            linear.weight_grads(grad_ups, rows) if needs.up and rows is not None else None,
            grad_down,
            linear.bias_grads(grad_gates) if needs.gate_bias else None,
            linear.bias_grads(grad_ups) if needs.up_bias else None,
            grad_down_bias,
        )
