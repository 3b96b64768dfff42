"""Torch's attention kernel for packed sequences, `varlen_attn`, which is for CUDA and half precision only.

Shapes: T packed tokens, S sequences, H query heads, K KV heads, D head dim, P pages.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache as memoize
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reallm.model.attention.sinks import grad_of_sinks, lse_with_sinks, with_sinks
from reallm.model.packed import PackedSequences

if TYPE_CHECKING:
    from reallm.model.attention.functional import AttentionSpec


@dataclass(frozen=True)
class PagedSequences:
    """Sequences whose keys and values are in pages, and which have new tokens at their ends."""

    cu_seqlens: Tensor
    """[S+1] int32, bounds of the new tokens."""
    totals: Tensor
    """[S] int32, number of all tokens."""
    cu_totals: Tensor
    """[S+1] int32, sums of the totals."""
    pages: Tensor
    """[S, N] int32, pages of each sequence in the order of its tokens; those after its last page are not read."""
    max_length: int
    """At least the number of new tokens of each sequence."""
    max_total: int
    """At least the number of tokens of each sequence."""


def supports(device: torch.device, dtype: torch.dtype, head_dim: int, spec: AttentionSpec) -> bool:
    """Whether the kernel computes attention of a block, for tensors of a device and dtype."""
    half = dtype in (torch.bfloat16, torch.float16)
    has_kernel = spec.has_kernel and spec.slopes is None  # its own slopes have no gradients
    fits = device.type == "cuda" and half and has_kernel and head_dim % 8 == 0 and head_dim <= 256
    # with sinks it must return the logsumexp too
    return fits and (spec.sinks is None or "return_aux" in _parameters())


def supports_pages() -> bool:
    """Whether this version of torch has the kernel for pages; since 2.12."""
    return {"block_table", "seqused_k", "num_splits", "enable_gqa"} <= _parameters()


def attend_packed(q: Tensor, k: Tensor, v: Tensor, seqs: PackedSequences, spec: AttentionSpec) -> Tensor:
    """Causal attention within each sequence of the pack: `q` [T, H, D], `k` and `v` [T, K, D] -> [T, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    packed = partial(varlen_attn, scale=spec.scale, window_size=_window(spec))
    if q.shape[1] != k.shape[1] and "enable_gqa" in _parameters():
        packed = partial(packed, enable_gqa=True)
    elif q.shape[1] != k.shape[1]:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if spec.sinks is not None:
        return cast(Tensor, _AttendPackedWithSinks.apply(q, k, v, spec.sinks, seqs, packed))
    out = packed(q, k, v, seqs.cu_seqlens, seqs.cu_seqlens, seqs.max_length, seqs.max_length)
    assert isinstance(out, Tensor)
    return out


class _AttendPackedWithSinks(torch.autograd.Function):
    """`attend_packed` with sinks; `packed` is `varlen_attn` with the settings of a block."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, seqs: PackedSequences, packed: partial[Any]
    ) -> Tensor:
        bounds, longest = seqs.cu_seqlens, seqs.max_length
        out, lse = packed(q, k, v, bounds, bounds, longest, longest, return_aux=_logsumexp())
        lse = lse.t()  # [T, H]
        out = with_sinks(out, lse, sinks)
        ctx.save_for_backward(q, k, v, sinks, bounds, out, lse_with_sinks(lse, sinks))
        ctx.longest, ctx.settings = longest, packed.keywords
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, bounds, out, lse = ctx.saved_tensors
        window = ctx.settings["window_size"]
        grads = torch.ops.torch_attn._varlen_attn_backward(
            *(grad, q, k, v, out, lse.t().contiguous()),
            *(bounds, bounds, ctx.longest, ctx.longest, window == (-1, 0)),
            torch.zeros(2, dtype=torch.uint64, device=q.device),  # state of random numbers, of which there are none
            scale=ctx.settings["scale"],
            window_size=list(window),
        )
        return *grads, grad_of_sinks(grad, out, lse, sinks), None, None


def _logsumexp() -> Any:
    """The request that the kernel return the logsumexp of scores, [H, T], too."""
    from torch.nn.attention.varlen import AuxRequest

    return AuxRequest(lse=True)


def attend_pages(q: Tensor, keys: Tensor, values: Tensor, seqs: PagedSequences, spec: AttentionSpec) -> Tensor:
    """Attention of the new tokens of each sequence over all its tokens.

    Args:
        q: [T, H, D] queries of the new tokens, packed.
        keys: [P, page size, K, D] all pages; those of the new tokens are written.
        values: [P, page size, K, D].
        seqs: which pages belong to which sequence.
        spec: settings of the block.

    Returns:
        [T, H, D].
    """
    from torch.nn.attention.varlen import varlen_attn

    result = varlen_attn(
        q,
        keys,
        values,
        seqs.cu_seqlens,
        seqs.cu_totals,
        seqs.max_length,
        seqs.max_total,
        scale=spec.scale,
        window_size=_window(spec),
        enable_gqa=q.shape[1] != keys.shape[2],
        seqused_k=seqs.totals,
        block_table=seqs.pages,
        # more splits leave rows of the result unwritten (pytorch#194167), and would depend on the batch
        num_splits=1,
        return_aux=None if spec.sinks is None else _logsumexp(),
    )
    if isinstance(result, Tensor):
        return result
    assert spec.sinks is not None
    out, lse = result
    return with_sinks(out, lse.t(), spec.sinks)


def _window(spec: AttentionSpec) -> tuple[int, int]:
    """Number of tokens seen to the left and to the right of each token; -1 is all."""
    return (-1 if spec.window is None else spec.window - 1, 0)


@memoize
def _parameters() -> frozenset[str]:
    """Names of the parameters that `varlen_attn` has in this version of torch."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)
