"""The KV cache: keys and values of the tokens seen so far.

Shapes: S sequences, K KV heads, C capacity in tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Keys and values of S sequences, one [S, K, C, D] pair for each block, and how many tokens are filled in.

    Args:
        blocks: the numbers of the blocks, from 1.
        shape: S, K, C, D.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.blocks = {
            number: (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for number in blocks
        }
        """Number of a block -> its keys and values."""
        self.lengths = [0] * shape[0]
        self.capacity = shape[2]

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop all but these sequences, in this order."""
        for number, (keys, values) in self.blocks.items():
            rows = torch.tensor(list(sequences), dtype=torch.int64, device=keys.device)
            self.blocks[number] = (keys[rows], values[rows])
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


LayerCache = tuple[Tensor, Tensor]
