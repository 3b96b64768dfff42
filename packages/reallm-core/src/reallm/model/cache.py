"""The KV cache: keys and values of the tokens seen so far.

Shapes: S sequences, K KV heads, C capacity in tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reallm.model.config import ReaLModelConfig


class KVCache:
    """Keys and values of S sequences, one [S, K, C, D] pair for each block, and how many tokens are filled in."""

    def __init__(
        self,
        config: ReaLModelConfig,
        n_sequences: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (n_sequences, config.n_kv_heads, capacity, config.head_dim)
        self.blocks = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(config.n_layers)
        ]
        self.lengths = [0] * n_sequences
        self.capacity = capacity

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop all but these sequences, in this order."""
        rows = torch.tensor(list(sequences), dtype=torch.int64, device=self.blocks[0][0].device)
        self.blocks = [(keys[rows], values[rows]) for keys, values in self.blocks]
        self.lengths = [self.lengths[row] for row in sequences]

    def advance(self, lengths: Sequence[int]) -> None:
        """Count the tokens that a forward pass has filled in."""
        self.lengths = [old + new for old, new in zip(self.lengths, lengths, strict=True)]


def store(
    cache: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, past: Sequence[int], lengths: Sequence[int]
) -> None:
    """Write packed `keys` and `values` [T, K, D] behind the `past` tokens of each sequence, in place."""
    if all(length == 1 for length in lengths):
        rows = torch.arange(len(lengths), device=keys.device)
        columns = torch.tensor(list(past), device=keys.device)
        cache[0][rows, :, columns] = keys
        cache[1][rows, :, columns] = values
        return
    for held, packed in zip(cache, (keys, values), strict=True):
        for row, (start, new) in enumerate(zip(past, packed.split(list(lengths)), strict=True)):
            held[row, :, start : start + len(new)] = new.transpose(0, 1)
