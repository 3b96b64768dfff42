"""Attention sinks: a learned logit of each query head that takes part in the softmax, and whose weight is dropped.

(gpt-oss model card, 2025; Xiao et al., 2024, section 3.3.) For the logsumexp `l` of a query's scores, a sink `s` makes

    out' = out * sigmoid(l - s),    l' = log(exp(l) + exp(s)).

The backward pass of a kernel of attention recomputes weights as `exp(score - l)`: given `out'` and `l'` for `out` and
`l`, it returns the gradients of attention with sinks. That of a sink is the sum over queries of `-exp(s - l') * (out' .
grad)`.

Shapes: B batch, H query heads, K KV heads, L queries, L' keys, D head dim.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Attention with sinks, from that without.

    Args:
        out: [..., D], attention without sinks.
        lse: [...], logsumexp of each query's scores.
        sinks: the sink of each query; broadcasts to [...].

    Returns:
        [..., D], dtype of `out`.
    """
    # not torch.sigmoid, whose kernel computes the last elements by other instructions; see `model.activations`
    factor = (sinks.to(lse.dtype) - lse).exp_().add_(1).reciprocal_()
    return (out * factor.unsqueeze(-1)).to(out.dtype)


def lse_with_sinks(lse: Tensor, sinks: Tensor) -> Tensor:
    """Logsumexp of each query's scores and its sink; shapes as in `with_sinks`."""
    return torch.logaddexp(lse, sinks.to(lse.dtype))


def grad_of_sinks(grad: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Gradient of the sinks, in their shape, from that of the output.

    Args:
        grad: [..., D], gradient of `out`.
        out: [..., D], attention with sinks.
        lse: [...], `lse_with_sinks`.
        sinks: as in `with_sinks`.
    """
    weights = (sinks.to(lse.dtype) - lse).exp_()
    return -(weights * (grad.to(lse.dtype) * out).sum(-1)).sum_to_size(sinks.shape).to(sinks.dtype)


def attend_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Tensor | None, scale: float, *, causal: bool
) -> Tensor:
    """Attention with sinks by the CPU's kernel, which keeps no scores.

    Args:
        q: [B, H, L, D] queries.
        k: [B, K, L', D] keys.
        v: [B, K, L', D] values.
        sinks: broadcasts to [H, L].
        mask: added to scores; broadcasts to [B, H, L, L']. It gets no gradient.
        scale: factor on scores.
        causal: whether each query sees the keys up to its own place only.

    Returns:
        [B, H, L, D].
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _AttendOnCPU.apply(q, k, v, sinks, mask, scale, causal))
    out, lse = _forward(q, k, v, is_causal=causal, attn_mask=mask, scale=scale)
    return with_sinks(out, lse, sinks)


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _AttendOnCPU(torch.autograd.Function):
    """`attend_on_cpu` with gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Tensor | None, scale: float, causal: bool
    ) -> Tensor:
        out, lse = _forward(q, k, v, is_causal=causal, attn_mask=mask, scale=scale)
        out = with_sinks(out, lse, sinks)
        ctx.save_for_backward(q, k, v, sinks, mask, out, lse_with_sinks(lse, sinks))
        ctx.scale, ctx.causal = scale, causal
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, mask, out, lse = ctx.saved_tensors
        grads = _backward(grad, q, k, v, out, lse, 0.0, ctx.causal, attn_mask=mask, scale=ctx.scale)
        return *grads, grad_of_sinks(grad, out, lse, sinks), None, None, None
