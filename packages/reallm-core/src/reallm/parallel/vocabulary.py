"""Embedding and head of which each rank has a part of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from reallm.model.layers import TokenTable
from reallm.parallel.collectives import Peers, added_up, joined, shared_input


class SplitVocabulary:
    """Stands in for `model.vocabulary.WholeVocabulary` where each rank has some rows of the head.

    Args:
        peers: the ranks that share the vocabulary.
        sizes: how many rows each of them has, in order.
    """

    def __init__(self, peers: Peers, sizes: Sequence[int]) -> None:
        self._peers, self._sizes = peers, tuple(sizes)
        self.start = sum(self._sizes[: peers.rank])

    def read(self, hidden: Tensor) -> Tensor:
        """Hidden states that every rank reads with its part of the head."""
        return shared_input(hidden, self._peers)

    def whole(self, logits: Tensor) -> Tensor:
        """[N, v] -> [N, V], on every rank."""
        return joined(logits, self._peers, self._sizes)

    def sum_(self, x: Tensor) -> Tensor:
        """`x` after the sum over the parts of the vocabulary has taken its place."""
        return self._peers.sum_(x)

    def max_(self, x: Tensor) -> Tensor:
        """`x` after the largest over the parts of the vocabulary has taken its place."""
        return self._peers.max_(x)


def split_embedding(table: TokenTable, peers: Peers, start: int) -> Callable[[Tensor], Tensor]:
    """The forward pass of a table that has the rows from `start` on: tokens [T] -> [T, E]."""

    def forward(tokens: Tensor) -> Tensor:
        n_rows = len(table.weight)
        rows = tokens - start
        is_elsewhere = (rows < 0) | (rows >= n_rows)
        own = F.embedding(rows.masked_fill(is_elsewhere, 0), table.weight)
        own = own.masked_fill(is_elsewhere[:, None], 0.0)
        return added_up(own, peers)

    return forward
