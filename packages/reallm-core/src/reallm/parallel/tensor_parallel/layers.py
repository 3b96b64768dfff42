"""Embedding and head of which each rank has a part of the vocabulary."""

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
    """Stands in for `model.vocabulary.VocabReplicated` where each rank has some rows of the head.

    Args:
        peers: the ranks that share the vocabulary.
        sizes: how many rows each of them has, in order.
    """

    def __init__(self, peers: Peers, sizes: Sequence[int]) -> None:
        self._peers, self._sizes = peers, tuple(sizes)
        self.start = sum(self._sizes[: peers.rank])

    def read(self, hidden: Tensor) -> Tensor:
        """Hidden states that every rank reads with its part of the head."""
        return copy_to_tp_region(hidden, self._peers)

    def whole(self, logits: Tensor) -> Tensor:
        """[N, v] -> [N, V], on every rank."""
        return gather_from_tp_region(logits, self._peers, self._sizes)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """`x` after the sum over the parts of the vocabulary has taken its place."""
        return self._peers.all_reduce_sum(x)

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """`x` after the largest over the parts of the vocabulary has taken its place."""
        return self._peers.all_reduce_max(x)


def split_embedding(table: TokenEmbedding, peers: Peers, start: int) -> Callable[[Tensor], Tensor]:
    """The forward pass of a table that has the rows from `start` on: tokens [T] -> [T, E]."""

    def forward(tokens: Tensor) -> Tensor:
        n_rows = len(table.weight)
        rows = tokens - start
        is_elsewhere = (rows < 0) | (rows >= n_rows)
        own = F.embedding(rows.masked_fill(is_elsewhere, 0), table.weight)
        own = own.masked_fill(is_elsewhere[:, None], 0.0)
        return reduce_from_tp_region(own, peers)

    return forward


def parallel_norm(norm: Norm, peers: Peers, n_copies: int) -> Callable[[Tensor], Tensor]:
    """The forward pass of a norm over the parts [..., d] of all ranks together, in at least float32.

    Args:
        norm: with this rank's part of its parameters.
        peers: the ranks.
        n_copies: how many of them have the same part.

    Raises:
        ConfigError: it is neither `RMSNorm` nor `LayerNorm`.
    """
    if type(norm).forward not in (RMSNorm.forward, LayerNorm.forward):
        raise ConfigError(
            f"tensor parallelism would split what {type(norm).__qualname__} takes a mean over, and only RMSNorm and "
            "LayerNorm can be computed in parts; use tp=1"
        )
    centers = isinstance(norm, LayerNorm)

    def mean(x: Tensor) -> Tensor:
        n = x.shape[-1] * peers.size
        return all_reduce_sum(x.sum(dim=-1, keepdim=True) / n, peers)

    def forward(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if centers:
            wide = wide - mean(wide)
        out = wide * (mean(wide.square()) + norm.eps).rsqrt()
        if norm.weight is not None:
            out = out * (norm.weight + norm.offset)
        if norm.bias is not None:
            out = out + norm.bias
        return out.to(x.dtype)

    return forward
