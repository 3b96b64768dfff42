"""`RowStore`: a KV store of rows, each of which holds one sequence in contiguous memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from reallm.generation.row_cache import RowCache
from reallm.generation.row_slabs import RowSlabs
from reallm.generation.step import CacheCopy, Placement, Row, Step
from reallm.model.attention.kv_cache import CacheSpec, n_per_token
from reallm.model.transformer import Transformer


class RowStore:
    """A KV store of rows; its memory follows the number of rows that steps ask for.

    Args:
        specs: number of a block, from 1 -> the tensors that its attention keeps.
        tp: number of ranks among which each layer is split.
        dtype: dtype of tensors that declare none.
        device: device of the tensors.
    """

    page_size: int | None = None

    def __init__(
        self,
        specs: Mapping[int, CacheSpec],
        *,
        tp: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.specs = specs
        self.can_share_prefixes = all(n_per_token(spec) == len(spec) for spec in specs.values())
        self._slabs = RowSlabs(specs, tp, dtype, torch.device(device))

    @classmethod
    def of(cls, network: Transformer) -> RowStore:
        """A store for a network, or a rank's part of it, with the dtype and device of its parameters."""
        parameter = next(network.parameters())
        return cls(network.cache_specs(), tp=network.tp_size, dtype=parameter.dtype, device=parameter.device)

    @property
    def bytes_held(self) -> int:
        """Number of bytes of all tensors."""
        return sum(tensor.nbytes for slab in self._slabs for tensor in slab.tensors)

    def prepare(self, step: Step, *, exact: bool = False) -> RowCache:
        """Allocate, copy and free as a step says; returns the cache of its forward pass; see `KVStore.prepare`."""
        for capacity, n_rows in _rows_of(step).items():
            self._slabs.grow(capacity, n_rows)
        for copy in step.copies:
            self._copy(copy)
        for capacity in self._slabs.capacities if step.n_rows else ():
            self._slabs.shrink(capacity, step.n_rows.get(capacity, 0))
        return RowCache(
            self.specs, step.sequences, [self._slabs.locate(each.placement) for each in step.sequences], is_exact=exact
        )

    def erase(self, placement: Placement) -> None:
        """Write zeros to a row that has held numbers that are not finite, before it is given to another sequence."""
        slab, row = self._slabs.locate(placement)
        for tensor in slab.tensors:
            tensor[row] = 0

    def close(self) -> None:
        """Free all tensors; the next step starts from nothing."""
        self._slabs.clear()

    def _copy(self, copy: CacheCopy) -> None:
        (source, source_row), (target, target_row) = map(self._slabs.locate, (copy.source, copy.target))
        for number, spec in self.specs.items():
            for each, old, new in zip(spec, source.blocks[number], target.blocks[number], strict=True):
                before, after = old[source_row], new[target_row]
                if each.per_token:  # tokens are the dim before the last one
                    before, after = before.narrow(-2, 0, copy.n_tokens), after.narrow(-2, 0, copy.n_tokens)
                after.copy_(before)


def _rows_of(step: Step) -> dict[int, int]:
    """Capacity -> number of rows that a step reads, writes or asks for."""
    n_rows = dict(step.n_rows)
    places = [sequence.placement for sequence in step.sequences]
    for place in (*places, *(place for copy in step.copies for place in (copy.source, copy.target))):
        assert isinstance(place, Row), place
        n_rows[place.capacity] = max(n_rows.get(place.capacity, 0), place.index + 1)
    return n_rows
