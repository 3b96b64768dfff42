"""`linear`, the product that all linear layers and the output head compute, and its gradients.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reallm.model.products import onednn
from reallm.model.products.backend import linear_backend
from reallm.model.products.fixed_rows import in_fixed_rows
from reallm.model.products.prepacked import DerivedWeight, PrepackedWeight

PIECE_BYTES = 24 << 20
"""Size of the pieces of a product that are copied to their place: the C library keeps memory of this size, but gets
larger blocks from the kernel each time, page by page."""


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    prepacked: PrepackedWeight | None = None,
    *,
    exact: bool = False,
) -> Tensor:
    """`x @ weight.T + bias`, by the backend that `linear_backend` names; differentiable once.

    It is `F.linear` except for plain float32 tensors on the CPU, outside of `torch.compile`, autocast, function
    transforms and dispatch modes. Where oneDNN computes it, a row of the result does not depend on the other rows
    (see `onednn.why_not_batch_invariant`), nor on `prepacked`, nor on whether there are gradients.

    Args:
        x: [..., K].
        weight: [N, K].
        bias: [N].
        prepacked: holder of the weight's prepacked form, which is used without gradients.
        exact: let rows not depend on each other: by oneDNN on a CPU, whichever library is named, and elsewhere by
            products of a fixed number of rows.
    """
    if prepacked is not None and prepacked.settled is not None and x.numel() > 0:
        return _product(x, weight, bias, prepacked.settled)
    if not uses_onednn(x, weight, exact=exact) or not _match(x, weight, bias):
        return _linear_in_fixed_rows(x, weight, bias) if exact and not x.is_cpu else F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return cast(Tensor, _Linear.apply(x, weight, bias))
    return _linear(x, weight, bias, prepacked)


def joint_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    prepacked: PrepackedWeight,
    *,
    multiplied: Sequence[Tensor | DerivedWeight] | None = None,
    exact: bool = False,
) -> Sequence[Tensor] | None:
    """`linear` of one input and several weights, computed as one product; None where that is not possible.

    It is possible without gradients where oneDNN computes products. The results are the same, and views of one tensor.

    Args:
        x: [..., K].
        weights: [N, K] each.
        biases: [N] each, or None.
        prepacked: holder of the prepacked form of all weights together.
        multiplied: what takes the place of the weights, of their shapes; None: the weights.
        exact: as in `linear`.
    """
    form = prepacked.settled
    if form is None or x.numel() == 0:
        if torch.is_grad_enabled() or not all(
            uses_onednn(x, weight, exact=exact) and _match(x, weight, bias) and not weight.is_inference()
            for weight, bias in zip(weights, biases, strict=True)
        ):
            return None
        form = prepacked.of(weights if multiplied is None else multiplied)
    outputs = _product(x, weights[0], None, form)
    parts = outputs.split_with_sizes([weight.shape[0] for weight in weights], dim=-1)
    return [part if bias is None else part.add_(bias) for part, bias in zip(parts, biases, strict=True)]


def linear_into(x: Tensor, weight: Tensor, out: Tensor, *, exact: bool = False) -> None:
    """`x @ weight.T` into `out` [M, N], without gradients; `exact` as in `linear`."""
    if uses_onednn(x, weight, exact=exact):
        rows = max(1, PIECE_BYTES // (4 * len(weight)))
        for piece, result in zip(x.split(rows), out.split(rows), strict=True):
            result.copy_(onednn.product(piece, weight))
    elif exact and not x.is_cpu:
        out.copy_(_linear_in_fixed_rows(x, weight, None))
    else:
        torch.mm(x, weight.t(), out=out)


def input_grads(grad: Tensor, weight: Tensor) -> Tensor:
    """`grad @ weight`: gradients [M, K] of the inputs from those [M, N] of the outputs."""
    return onednn.product(grad, weight.t()) if uses_onednn(grad, weight) else grad @ weight


def uses_onednn(x: Tensor, weight: Tensor, *, exact: bool = False) -> bool:
    """Whether oneDNN computes the product of these tensors; `exact` as in `linear`."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and weight.is_cpu
        and _is_plain(x)
        and _is_plain(weight)
        and not onednn.is_watched()
        and x.numel() > 0
        and weight.numel() > 0
        and (exact or linear_backend() == "onednn")
    )


def _match(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether sizes and dtypes go together; if not, F.linear says so more clearly than oneDNN."""
    sizes_match = weight.dim() == 2 and x.dim() >= 1 and x.shape[-1] == weight.shape[1]
    return sizes_match and (bias is None or (bias.dtype == weight.dtype and bias.shape == weight.shape[:1]))


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is no DTensor, fake tensor or another kind with operators of its own."""
    return type(tensor) in (Tensor, nn.Parameter)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, prepacked: PrepackedWeight | None = None) -> Tensor:
    form = None if prepacked is None or weight.is_inference() else prepacked.of([weight])
    return _product(x, weight, bias, form)


def _linear_in_fixed_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = in_fixed_rows(lambda rows: F.linear(rows, weight, bias), x.reshape(-1, x.shape[-1]))
    return out.view(*x.shape[:-1], -1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, form: Tensor | None) -> Tensor:
    """`onednn.product` for `x` with any number of dims."""
    if x.dim() == 2:
        return onednn.product(x, weight, bias, form)
    return onednn.product(x.reshape(-1, x.shape[-1]), weight, bias, form).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grads = grad.reshape(-1, grad.shape[-1])
        return (
            None if weight is None else input_grads(grads, weight).view(*grad.shape[:-1], -1),
            None if x is None else grads.t() @ x.reshape(-1, x.shape[-1]),
            grads.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )
