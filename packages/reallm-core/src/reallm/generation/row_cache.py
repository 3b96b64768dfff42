"""`RowCache`: the cache of one forward pass over rows, and attention over it.

What a pass does is planned once, from lengths and places, and shared by all blocks: which tokens are written where,
which rows are attended to in one call, and their masks.

Shapes: T packed tokens, S sequences, H query heads, K KV heads, D head dim, N rows of a slab, C their capacity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as memoize
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from reallm.generation.kv_store import Kind
from reallm.generation.row_slabs import RowLocation, Slab
from reallm.generation.step import ScheduledSequence
from reallm.model.attention import exact
from reallm.model.attention.functional import (
    AttentionSpec,
    attend_packed,
    attend_rows,
    attend_sequence,
)
from reallm.model.attention.kv_cache import BlockCache, CacheSpec, n_per_token
from reallm.model.attention.masks import CausalMasks, Slopes, rows_mask
from reallm.model.packed import PackedSequences


class RowCache:
    """The cache of one forward pass over rows.

    Args:
        specs: number of a block, from 1 -> the tensors that its attention keeps.
        sequences: the sequences of the pass, in `pack_order`.
        locations: their rows.
        is_exact: as `exact` in `KVStore.prepare`.
    """

    def __init__(
        self,
        specs: Mapping[int, CacheSpec],
        sequences: Sequence[ScheduledSequence],
        locations: Sequence[RowLocation],
        *,
        is_exact: bool = False,
    ) -> None:
        plan = _Plan(sequences, locations, is_exact)
        self.blocks = {number: RowBlock(number, spec, plan) for number, spec in specs.items()}

    def advance(self, lengths: Sequence[int]) -> None:
        """Write to the rows what blocks have changed in copies of them."""
        for block in self.blocks.values():
            block.write_back()


class RowBlock(BlockCache):
    """The rows of one block in one forward pass.

    It can be used like the tuple of the tensors of the block's `CacheSpec`, with row i for sequence i of the pass; what
    is written to them is kept.
    """

    def __init__(self, number: int, spec: CacheSpec, plan: _Plan) -> None:
        self._number, self._spec, self._plan = number, spec, plan
        self._n_per_token = n_per_token(spec)
        self._gathered: tuple[Tensor, ...] | None = None

    @property
    def n_started(self) -> int:
        """See `BlockCache.n_started`."""
        return 0 if self._plan.started is None else self._plan.started.n_tokens

    def append(self, *new: Tensor) -> None:
        """See `BlockCache.append`."""
        for write in self._plan.writes:
            index = write.index(new[0].shape[1])
            for held, each in zip(self._kept_of_tokens(write.slab), new, strict=True):
                rows = _part(each, write.tokens).reshape(-1, each.shape[-1])
                held.view(-1, held.shape[-1]).index_copy_(0, index, rows)

    def attend_started(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """See `BlockCache.attend_started`."""
        assert self._plan.started is not None
        return attend_packed(q, k, v, self._plan.started, spec, self._plan.causal_masks)

    def attend_cached(self, q: Tensor, spec: AttentionSpec) -> Tensor:
        """See `BlockCache.attend_cached`."""
        plan, outputs = self._plan, []
        for part in plan.continued:
            kept = self._kept_of_tokens(part.slab)
            outputs.append(self._attend_part(q[part.tokens], kept[0][part.row], kept[-1][part.row], part.total, spec))
        attend = exact.attend_rows if plan.is_exact else attend_rows
        for group in plan.groups:
            left, right, mask = group.mask(spec.window, spec.slopes, q.dtype)
            kept = self._kept_of_tokens(group.slab)
            keys, values = (held[group.rows, :, left:right] for held in (kept[0], kept[-1]))
            out = attend(group.queries(q), keys, values, mask, spec)
            outputs.append(out if group.places is None else out[group.places])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_part(self, q: Tensor, keys: Tensor, values: Tensor, total: int, spec: AttentionSpec) -> Tensor:
        """Attention of several tokens [L, H, D] at the end of one sequence over its row [K, C, D]."""
        plan = self._plan
        if not plan.is_exact:
            return attend_sequence(q, keys[:, :total], values[:, :total], spec, plan.causal_masks)
        n_keys = exact.chunk_end(max(plan.totals))
        mask = plan.chunk_mask(n_keys, spec.window, q.dtype, q.device, spec.slopes)
        return exact.attend_chunks(q, keys, values, total, mask, spec)

    def read_states(self) -> tuple[Tensor, ...]:
        """See `BlockCache.read_states`; views if the rows of all sequences are adjacent."""
        plan, n_begun = self._plan, self._plan.cached.count(0)
        found = []
        for index in range(self._n_per_token, len(self._spec)):
            parts = [run.slab.blocks[self._number][index][run.rows] for run in plan.rows_behind(n_begun)]
            if n_begun:
                parts.insert(0, parts[0].new_zeros(n_begun, *parts[0].shape[1:]))
            found.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return tuple(found)

    def write_states(self, *states: Tensor) -> None:
        """See `BlockCache.write_states`."""
        for run in self._plan.rows_behind(0):
            kept = run.slab.blocks[self._number][self._n_per_token :]
            for held, state in zip(kept, states, strict=True):
                held[run.rows] = state[run.sequences]

    def _kept_of_tokens(self, slab: Slab) -> Sequence[Tensor]:
        """The tensors of the block in a slab that have a part for each token."""
        return slab.blocks[self._number][: self._n_per_token]

    def __getitem__(self, index: int) -> Tensor:
        return self._tensors[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._spec)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the block: views if the rows are adjacent, else copies that are written back."""
        locations = self._plan.locations
        slab, first = locations[0]
        if all(each is slab and row == first + i for i, (each, row) in enumerate(locations)):
            return tuple(tensor[first : first + len(locations)] for tensor in slab.blocks[self._number])
        if self._gathered is None:
            self._gathered = self._new_tensors()
            for gathered, held in self._pairs(self._plan.cached):
                gathered.copy_(held)
        return self._gathered

    def write_back(self) -> None:
        """Write to the rows what the block has changed in copies of them."""
        if self._gathered is not None:
            for gathered, held in self._pairs(self._plan.totals):
                held.copy_(gathered)
            self._gathered = None

    def _new_tensors(self) -> tuple[Tensor, ...]:
        """Zeros for the rows of all sequences, of the highest capacity among them."""
        locations = self._plan.locations
        capacity = max(slab.capacity for slab, _ in locations)
        shapes = [(len(locations), *held.shape[1:]) for held in locations[0].slab.blocks[self._number]]
        return tuple(
            held.new_zeros((*shape[:-2], capacity, shape[-1]) if each.per_token else shape)
            for each, shape, held in zip(self._spec, shapes, locations[0].slab.blocks[self._number], strict=True)
        )

    def _pairs(self, lengths: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """What was gathered, and its place: the first tokens of each sequence, or its state."""
        assert self._gathered is not None
        for i, ((slab, row), n) in enumerate(zip(self._plan.locations, lengths, strict=True)):
            for each, gathered, held in zip(self._spec, self._gathered, slab.blocks[self._number], strict=True):
                if each.per_token:  # tokens are the dim before the last one
                    yield gathered[i].narrow(-2, 0, n), held[row].narrow(-2, 0, n)
                else:
                    yield gathered[i], held[row]


class _Plan:
    """What all blocks do in one forward pass."""

    def __init__(
        self, sequences: Sequence[ScheduledSequence], locations: Sequence[RowLocation], is_exact: bool
    ) -> None:
        self.locations, self.is_exact = locations, is_exact
        self.cached = [sequence.n_cached for sequence in sequences]
        self.totals = [sequence.n_cached + sequence.n_new for sequence in sequences]
        kinds = [Kind.of(sequence) for sequence in sequences]
        assert kinds == sorted(kinds), "the sequences of a step are not in pack_order"
        bounds = [0, *accumulate(sequence.n_new for sequence in sequences)]
        parts = [
            _Part(slab, row, slice(*tokens), total)
            for (slab, row), tokens, total in zip(locations, pairwise(bounds), self.totals, strict=True)
        ]
        n_started, n_decoded = 0 if is_exact else kinds.count(Kind.START), kinds.count(Kind.DECODE)
        started, after = parts[:n_started], [part.behind(bounds[n_started]) for part in parts[n_started:]]
        decoded = after[len(after) - n_decoded :]
        self.continued = after[: len(after) - n_decoded]
        """The sequences that go on with several tokens; in an exact pass those that start, too."""
        self.started = (
            PackedSequences.from_lengths([part.total for part in started], device=started[0].slab.device)
            if started
            else None
        )
        """The sequences that start."""
        runs = groupby(decoded, lambda part: (id(part.slab), exact.chunk_end(part.total) if is_exact else None))
        self.groups = [group for _, run in runs for group in _groups(list(run), is_exact)]
        """The sequences that go on with one token."""
        self.writes = [_Write(list(run)) for _, run in groupby(parts, lambda part: id(part.slab))]
        self.causal_masks, self.chunk_mask = CausalMasks(max(self.totals, default=0)), memoize(exact.chunk_mask)
        self._row_runs: dict[int, list[_RowRun]] = {}

    def rows_behind(self, start: int) -> list[_RowRun]:
        """The rows of all sequences but the first `start`."""
        if start not in self._row_runs:
            runs, first = list[_RowRun](), start
            for _, run in groupby(self.locations[start:], lambda each: id(each.slab)):
                runs.append(_RowRun.of(list(run), first))
                first = runs[-1].sequences.stop
            self._row_runs[start] = runs
        return self._row_runs[start]


class _RowRun(NamedTuple):
    """Successive sequences of a pass with rows in one slab."""

    slab: Slab
    sequences: slice
    rows: slice | Tensor
    """Their rows; a slice if these are adjacent."""

    @classmethod
    def of(cls, locations: Sequence[RowLocation], start: int) -> _RowRun:
        """The run of locations in one slab, the first of which is that of sequence `start`."""
        rows = [row for _, row in locations]
        sequences = slice(start, start + len(rows))
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return cls(locations[0].slab, sequences, slice(rows[0], rows[0] + len(rows)))
        return cls(locations[0].slab, sequences, torch.tensor(rows, device=locations[0].slab.device))


@dataclass(frozen=True)
class _Part:
    """The tokens of one sequence in a pass."""

    slab: Slab
    row: int
    tokens: slice
    """Its new tokens in the pack, or in the part of it behind the sequences that start."""
    total: int
    """The number of its tokens, the cached ones included."""

    def behind(self, n_tokens: int) -> _Part:
        """The same in the part of the pack behind its first tokens."""
        tokens = slice(self.tokens.start - n_tokens, self.tokens.stop - n_tokens)
        return replace(self, tokens=tokens) if n_tokens else self


class _Write:
    """Tokens that follow each other in the pack and are written to rows of one slab."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.slab = parts[0].slab
        self.tokens = slice(parts[0].tokens.start, parts[-1].tokens.stop)
        lengths = torch.tensor([part.tokens.stop - part.tokens.start for part in parts])
        # the index of a token in its row is its index in the pack, shifted
        shifts = torch.tensor([part.total - part.tokens.stop for part in parts]).repeat_interleave(lengths)
        self._rows = torch.tensor([part.row for part in parts]).repeat_interleave(lengths)
        self._columns = torch.arange(self.tokens.start, self.tokens.stop) + shifts
        self._indices: dict[int, Tensor] = {}

    def index(self, n_heads: int) -> Tensor:
        """Places [tokens * K] of the vectors of all tokens in the slab's keys, taken as [N * K * C, D]."""
        if n_heads not in self._indices:
            heads = self._rows[:, None] * n_heads + torch.arange(n_heads)
            index = (heads * self.slab.capacity + self._columns[:, None]).flatten()
            self._indices[n_heads] = index.to(self.slab.device)
        return self._indices[n_heads]


class _Group:
    """Adjacent rows of a slab that are attended to in one call, with one query each."""

    def __init__(self, parts: Sequence[_Part], is_exact: bool) -> None:
        self.slab, self._is_exact = parts[0].slab, is_exact
        self.rows = slice(parts[0].row, parts[-1].row + 1)
        self._longest = max(part.total for part in parts)
        self._tokens = slice(parts[0].tokens.start, parts[-1].tokens.stop)
        n_rows = self.rows.stop - self.rows.start
        self._totals = [self._longest] * n_rows  # also of rows that are not in use, whose results are dropped
        for part in parts:
            self._totals[part.row - self.rows.start] = part.total
        self.places: Tensor | None = None
        """Index [sequences] of the rows that are in use; None: all."""
        if n_rows > len(parts):
            self.places = torch.tensor([part.row - self.rows.start for part in parts], device=self.slab.device)
        self._masks: dict[tuple[int | None, Slopes | None, torch.dtype], tuple[int, int, Tensor | None]] = {}

    def queries(self, q: Tensor) -> Tensor:
        """The queries [rows, H, D] of the rows, from those of all tokens [T, H, D]."""
        q = _part(q, self._tokens)
        return q if self.places is None else q.new_zeros(len(self._totals), *q.shape[1:]).index_copy_(0, self.places, q)

    def mask(self, window: int | None, slopes: Slopes | None, dtype: torch.dtype) -> tuple[int, int, Tensor | None]:
        """The range of keys that are read, and their `rows_mask`; None if it is zero."""
        settings = window, slopes, dtype
        if settings not in self._masks:
            self._masks[settings] = self._new_mask(*settings)
        return self._masks[settings]

    def _new_mask(
        self, window: int | None, slopes: Slopes | None, dtype: torch.dtype
    ) -> tuple[int, int, Tensor | None]:
        shortest = min(self._totals)
        if self._is_exact:
            left, right = exact.key_range(self._longest - 1, window)
        else:
            left, right = 0 if window is None else max(0, shortest - window), self._longest
            if shortest == right and slopes is None:
                return left, right, None
        return left, right, rows_mask(self._totals, left, right, window, dtype, self.slab.device, slopes)


def _part(packed: Tensor, tokens: slice) -> Tensor:
    """Some tokens of a pack; without a call if they are all."""
    return packed if tokens.stop - tokens.start == packed.shape[0] else packed[tokens]


def _groups(parts: Sequence[_Part], is_exact: bool) -> list[_Group]:
    """Divide sequences with rows in one slab into groups."""
    ranges = segments([part.row for part in parts], [part.total for part in parts], parts[0].slab.keys_per_call)
    return [_Group(parts[each.start : each.stop], is_exact) for each in ranges]


def segments(rows: Sequence[int], lengths: Sequence[int], call_cost: int) -> list[range]:
    """Divide rows into runs that are each read in one call.

    A call reads all rows between its first and its last one, up to the longest length, so that a run ends where one
    more row would make it read more than a call of its own would cost.

    Args:
        rows: indices of the rows, rising.
        lengths: number of tokens of each.
        call_cost: number of tokens that are read in the time that a call takes.

    Returns:
        Ranges of indices into `rows`.
    """
    runs, start, longest = [], 0, lengths[0]
    for i in range(1, len(rows)):
        n_rows, wider = rows[i - 1] - rows[start] + 1, max(longest, lengths[i])
        together = (rows[i] - rows[start] + 1) * wider
        if together > n_rows * longest + lengths[i] + call_cost:
            runs.append(range(start, i))
            start, longest = i, lengths[i]
        else:
            longest = wider
    return [*runs, range(start, len(rows))]
