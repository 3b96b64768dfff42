"""Torch's attention kernel for packed sequences, `varlen_attn`, which is for CUDA and half precision only.

Shapes: T packed tokens, S sequences, H query heads, K KV heads, D head dim, P pages.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache as memoize
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    return device.type == "cuda" and half and spec.has_kernel and head_dim % 8 == 0 and head_dim <= 256


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
    out = packed(q, k, v, seqs.cu_seqlens, seqs.cu_seqlens, seqs.max_length, seqs.max_length)
    assert isinstance(out, Tensor)
    return out


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

    out = varlen_attn(
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
    )
    assert isinstance(out, Tensor)
    return out


def _window(spec: AttentionSpec) -> tuple[int, int]:
    """Number of tokens seen to the left and to the right of each token; -1 is all."""
    return (-1 if spec.window is None else spec.window - 1, 0)


@memoize
def _parameters() -> frozenset[str]:
    """Names of the parameters that `varlen_attn` has in this version of torch."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)
