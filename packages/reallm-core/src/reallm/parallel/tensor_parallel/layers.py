"""Layers that compute with only this rank's part of their parameters: embedding, output head and norms.

Shapes: T packed tokens, N selected tokens, E hidden, V vocabulary, v this rank's rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reallm.errors import ConfigError
from reallm.model.layers import LayerNorm, Norm, RMSNorm, TokenEmbedding
from reallm.parallel.tensor_parallel.mappings import (
    Peers,
    all_reduce_sum,
    copy_to_tp_region,
    gather_from_tp_region,
    reduce_from_tp_region,
)


class VocabParallel:
    """Replacement of `model.linear_cross_entropy.VocabReplicated` if each rank has some rows of the head.

    Args:
        peers: the ranks that split the vocabulary.
        sizes: the number of rows of each rank, in order.
    """

    def __init__(self, peers: Peers, sizes: Sequence[int]) -> None:
        self._peers, self._sizes = peers, tuple(sizes)
        self.start = sum(self._sizes[: peers.rank])

    def read(self, hidden: Tensor) -> Tensor:
        """Identity forward, all-reduce backward: each rank multiplies the hidden states by its rows."""
        return copy_to_tp_region(hidden, self._peers)

    def whole(self, logits: Tensor) -> Tensor:
        """All-gather: [N, v] -> [N, V]."""
        return gather_from_tp_region(logits, self._peers, self._sizes)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        return self._peers.all_reduce_sum(x)

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over the ranks, in place."""
        return self._peers.all_reduce_max(x)


def vocab_parallel_embedding(embedding: TokenEmbedding, peers: Peers, start: int) -> Callable[[Tensor], Tensor]:
    """The forward pass of an embedding with the rows from `start` on, followed by an all-reduce: tokens [T] -> [T, E].

    Tokens whose rows other ranks hold get zeros before the all-reduce (Megatron's `VocabParallelEmbedding`).
    """

    def forward(tokens: Tensor) -> Tensor:
        n_rows = len(embedding.weight)
        rows = tokens - start
        is_elsewhere = (rows < 0) | (rows >= n_rows)
        partial = F.embedding(rows.masked_fill(is_elsewhere, 0), embedding.weight)
        partial = partial.masked_fill(is_elsewhere[:, None], 0.0)
        return reduce_from_tp_region(partial, peers)

    return forward


def parallel_norm(norm: Norm, peers: Peers) -> Callable[[Tensor], Tensor]:
    """The forward pass of a norm whose dim [..., d] is split between ranks: means are all-reduced, in at least float32.

    Args:
        norm: a norm with this rank's part of its parameters.
        peers: the ranks; each part is held by the same number of ranks.

    Raises:
        ConfigError: the norm is neither `RMSNorm` nor `LayerNorm`.
    """
    if type(norm).forward not in (RMSNorm.forward, LayerNorm.forward):
        raise ConfigError(
            f"tensor parallelism would split what {type(norm).__qualname__} takes a mean over, and only RMSNorm and "
            "LayerNorm can be computed in parts; use tp=1"
        )
    is_centered = isinstance(norm, LayerNorm)

    def mean(x: Tensor) -> Tensor:
        n = x.shape[-1] * peers.size
        return all_reduce_sum(x.sum(dim=-1, keepdim=True) / n, peers)

    def forward(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if is_centered:
            wide = wide - mean(wide)
        out = wide * (mean(wide.square()) + norm.eps).rsqrt()
        if norm.weight is not None:
            out = out * (norm.weight + norm.offset)
        if norm.bias is not None:
            out = out + norm.bias
        return out.to(x.dtype)

    return forward
