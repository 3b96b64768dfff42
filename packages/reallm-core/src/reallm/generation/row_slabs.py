"""Memory for rows: slabs of adjacent rows of equal capacity, which come and go with the number of rows in use.

Shapes: N rows of a slab, C their capacity, K KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from reallm.generation.step import Placement, Row
from reallm.model.attention.kv_cache import CacheSpec

SLAB_TOKENS = 16384
"""Capacity in tokens of a full slab of several rows: so many that another call for the next slab hardly counts, and so
few that they can be copied when rows are added."""
CALL_BYTES = 1 << 18
"""Number of bytes of keys and values that a CPU reads in the time that one more call of attention takes."""
GPU_CALL_BYTES = 1 << 24
"""The same for a GPU."""


@dataclass(frozen=True, eq=False)
class Slab:
    """Adjacent rows of equal capacity."""

    capacity: int
    n_rows: int
    device: torch.device
    blocks: dict[int, tuple[Tensor, ...]]
    """Number of a block -> its tensors; keys and values are [N, K, C, D]."""

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The tensors of all blocks."""
        return (tensor for block in self.blocks.values() for tensor in block)

    @cached_property
    def keys_per_call(self) -> int:
        """Number of tokens of which a block's keys and values are read in the time that one more call takes."""
        bytes_of_token = sum(tensor.nbytes for tensor in self.tensors) // (self.n_rows * self.capacity)
        call_bytes = CALL_BYTES if self.device.type == "cpu" else GPU_CALL_BYTES
        return call_bytes * len(self.blocks) // max(1, bytes_of_token)


class RowLocation(NamedTuple):
    """The memory of a row: a row of a slab."""

    slab: Slab
    row: int


class RowSlabs:
    """Slabs for rows of any capacity.

    Args:
        specs: number of a block, from 1 -> the tensors that its attention keeps.
        tp: number of ranks among which each layer is split.
        dtype: dtype of tensors that declare none.
        device: device of the tensors.
    """

    def __init__(self, specs: Mapping[int, CacheSpec], tp: int, dtype: torch.dtype, device: torch.device) -> None:
        self.specs, self.tp, self.dtype, self.device = specs, tp, dtype, device
        self._slabs: dict[int, list[Slab]] = {}
        """Capacity -> slabs of such rows; all but the last one are full."""

    def __iter__(self) -> Iterator[Slab]:
        return (slab for slabs in self._slabs.values() for slab in slabs)

    @property
    def capacities(self) -> list[int]:
        """The capacities of which there are rows."""
        return list(self._slabs)

    def clear(self) -> None:
        """Free all rows."""
        self._slabs.clear()

    def locate(self, place: Placement) -> RowLocation:
        """The memory of a row."""
        assert isinstance(place, Row), place
        number, row = divmod(place.index, _rows_of_slab(place.capacity))
        return RowLocation(self._slabs[place.capacity][number], row)

    def grow(self, capacity: int, n_rows: int) -> None:
        """Have at least `n_rows` rows of a capacity, and not twice as many if there are fewer now."""
        slabs, full = self._slabs.setdefault(capacity, []), _rows_of_slab(capacity)
        while (n_held := sum(slab.n_rows for slab in slabs)) < n_rows:
            n_full, n_last = divmod(n_held, full)
            size = min(full, _power_of_two(n_rows - n_full * full))
            slabs[n_full:] = [self._resized(slabs[-1], size) if n_last else self._allocate(capacity, size)]

    def shrink(self, capacity: int, n_rows: int) -> None:
        """Free rows of a capacity beyond the first `n_rows`; a few may stay, so that they need not be added again."""
        slabs, full = self._slabs[capacity], _rows_of_slab(capacity)
        del slabs[-(-n_rows // full) :]
        n_last = n_rows - full * (len(slabs) - 1)
        if slabs and 4 * n_last <= slabs[-1].n_rows:
            slabs[-1] = self._resized(slabs[-1], _power_of_two(n_last))
        if not slabs:
            del self._slabs[capacity]

    def _allocate(self, capacity: int, n_rows: int) -> Slab:
        blocks = {number: self._tensors(number, capacity, n_rows) for number in self.specs}
        return Slab(capacity, n_rows, self.device, blocks)

    def _tensors(self, number: int, capacity: int, n_rows: int) -> tuple[Tensor, ...]:
        # not empty: a number that is not finite is not masked by a weight of 0
        return tuple(each.allocate(n_rows, capacity, self.tp, self.dtype, self.device) for each in self.specs[number])

    def _resized(self, slab: Slab, n_rows: int) -> Slab:
        """A slab with the same first rows; the memory of the old one is freed block by block."""
        n_kept, blocks = min(slab.n_rows, n_rows), {}
        for number in self.specs:
            old, blocks[number] = slab.blocks.pop(number), self._tensors(number, slab.capacity, n_rows)
            for before, after in zip(old, blocks[number], strict=True):
                after[:n_kept] = before[:n_kept]
        return Slab(slab.capacity, n_rows, self.device, blocks)


def slab_tokens(capacity: int, n_rows: int) -> int:
    """Tokens for which the slabs of so many rows have room, once `RowSlabs.grow` has made them."""
    n_full, n_last = divmod(n_rows, full := _rows_of_slab(capacity))
    return capacity * (n_full * full + (min(full, _power_of_two(n_last)) if n_last else 0))


def _rows_of_slab(capacity: int) -> int:
    """Number of rows of a full slab."""
    return max(1, SLAB_TOKENS // capacity)


def _power_of_two(n: int) -> int:
    """The lowest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
