"""Grouped forward and backward passes of all experts with low-rank adapters on frozen weights.

Shapes: T tokens, E hidden, X experts, k experts a token, N = T * k rows, sorted by expert; I inputs, O outputs, r rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from reallm.model.adapted import LowRank
from reallm.model.moe.expert_linear import ExpertLinear
from reallm.model.moe.experts import Assignment, GatedActivation


def adapted_expert_mlp(
    x: Tensor,
    chosen: Assignment,
    weights: Tensor,
    gate: ExpertLinear,
    up: ExpertLinear,
    down: ExpertLinear,
    activation: GatedActivation,
) -> Tensor:
    """`grouped_expert_mlp` of layers with adapters, whose weights and biases get no gradients; arguments as there."""
    rows = x.index_select(0, chosen.tokens)
    inner = activation(_outputs(rows, chosen, gate), _outputs(rows, chosen, up))
    return F.embedding_bag(chosen.row_of, _outputs(inner, chosen, down), per_sample_weights=weights, mode="sum")


def _outputs(rows: Tensor, chosen: Assignment, layer: ExpertLinear) -> Tensor:
    """Outputs [N, O] of each expert's rows [N, I]."""
    adapter = layer.adapter
    a, b, scaling = (None, None, 0.0) if adapter is None else _as(adapter, rows.dtype)
    return cast(Tensor, _GroupedLoRA.apply(rows, layer.weight, layer.scaled_bias, a, b, scaling, chosen))


def _as(adapter: LowRank, dtype: torch.dtype) -> LowRank:
    return LowRank(adapter.a.to(dtype), adapter.b.to(dtype), adapter.scaling)


class _GroupedLoRA(torch.autograd.Function):
    """`x_e @ (W_e + scaling * B_e @ A_e).T + bias_e` of each expert; only `x` and `x_e @ A_e.T` are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        scaling: float,
        chosen: Assignment,
    ) -> Tensor:
        linear, within = chosen.linear(x, weight), None
        out = linear.outputs(x, weight)
        if bias is not None:
            out.add_(linear.for_rows(bias))
        if a is not None and b is not None:
            low_rank = chosen.linear(x, a)
            within = low_rank.outputs(x, a)
            out.add_(low_rank.outputs(within, b), alpha=scaling)
        ctx.save_for_backward(None if a is None else x, weight, a, b, within)
        ctx.scaling, ctx.chosen = scaling, chosen
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, within = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.chosen.linear(grad, weight).input_grads(grad, weight)
        if a is not None:
            low_rank = ctx.chosen.linear(x, a)
            grad_within = low_rank.input_grads(grad, b).mul_(ctx.scaling)
            if grad_x is not None:
                grad_x = low_rank.input_grads(grad_within, a, out=grad_x)
            grad_a = low_rank.weight_grads(grad_within, x)
            grad_b = low_rank.weight_grads(grad, within).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None, None
