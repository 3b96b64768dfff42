"""`RowManager`: gives each sequence a row of the cache; rows have capacities of 256, 512, 1024, ... tokens.

A sequence that outgrows its row moves to one of twice the capacity, so that less than half of a row is unused once it
has 256 tokens. The lowest free row of a capacity comes first, so that the tensors of rows stay short. Imports no torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from reallm.generation.cache_manager import Allocation
from reallm.generation.prefix_index import BLOCK_SIZE, KeysAreStale, PrefixIndex
from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Row


@dataclass(eq=False)
class _Holder:
    """A row, and the sequence whose tokens are in it."""

    sequence: SequenceState
    row: Row
    n_computed: int
    """Number of tokens that are in the row once the copies planned so far are made."""
    n_listed: int = 0
    """Number of its blocks in the index: those in the row, and those of its prompt that it is about to compute."""


class RowManager:
    """The rows of a cache.

    Args:
        n_tokens: number of tokens for which all rows together have room.
        prefix_sharing: whether the beginning of a prompt is copied from a row that has it.
        per_token: whether all that layers keep is per token. If not, a row can only be copied with all its tokens, and
            others find it once its sequence has ended.
        keys_are_stale: see `PrefixIndex`.
        block_size: number of tokens of a block, and capacity of the smallest rows.
    """

    def __init__(
        self,
        n_tokens: int,
        *,
        prefix_sharing: bool = True,
        per_token: bool = True,
        keys_are_stale: KeysAreStale | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.n_tokens = n_tokens
        self._block_size = block_size
        self._shares, self._per_token = prefix_sharing, per_token
        self._index = PrefixIndex(block_size, keys_are_stale)
        self._holders: dict[int, _Holder] = {}
        self._kept: dict[int, None] = {}  # ids of finished sequences, the least recently used first
        self._by_row: dict[Row, _Holder] = {}
        self._n_rows: dict[int, int] = {}  # capacity -> 1 + index of the highest row that has a holder
        self._free: dict[int, list[int]] = {}  # capacity -> heap with all free rows below that one
        self._n_spanned = 0  # tokens of the rows in `_n_rows`
        self._n_occupied = 0  # tokens of the rows that have a holder
        self._n_kept = 0  # tokens of the rows of finished sequences
        self._most_in_use = 0  # the most tokens that rows of running sequences have had

    @property
    def n_free_tokens(self) -> int:
        """Number of tokens for which there is room besides that of running sequences."""
        return self.n_tokens - self._n_occupied + self._n_kept

    @property
    def longest_sequence(self) -> int:
        """The capacity of the largest row for which there is room."""
        n_blocks = self.n_tokens // self._block_size
        return (1 << n_blocks.bit_length() >> 1) * self._block_size

    @property
    def n_rows(self) -> Mapping[int, int]:
        """Capacity -> number of rows that must be there; see `Step.n_rows`."""
        return {capacity: n for capacity, n in self._n_rows.items() if n}

    def placement(self, sequence: SequenceState) -> Row:
        """The row of a sequence."""
        return self._holders[sequence.id].row

    # ------------------------------------------------------------------ sequences come, grow and go

    def waits(self, sequence: SequenceState) -> bool:
        """Whether a running sequence is about to compute tokens with which this one begins."""
        longest = 0
        for n_tokens, holder in self._alike(sequence):
            if n_tokens < longest:
                break
            longest = n_tokens
            if holder.n_computed >= n_tokens:
                return False
        return longest > 0

    def allocate(self, sequence: SequenceState) -> Allocation | None:
        """A row for all tokens of a sequence, of which the first may be copied to it; None: there is no room now."""
        capacity, copies = self._capacity(len(sequence.tokens)), list[CacheCopy]()
        source, n_shared = self._source(sequence)
        if source is not None and self._can_be_taken_over(source, sequence, capacity):
            row: Row | None = source.row
            self._release(source)
            self._occupy(source.row)
        else:
            row = self._take(capacity, copies, source)
            if row is None and source is not None and not self._runs(source):
                source, n_shared = None, 0  # what could be copied is in the way
                row = self._take(capacity, copies)
            if row is not None and source is not None:
                copies.append(CacheCopy(source.row, row, n_shared))
                self._touch(source)
        if row is None:
            return None
        holder = _Holder(sequence, row, n_shared)
        self._holders[sequence.id] = self._by_row[row] = holder
        if self._per_token:
            self._list(holder, len(sequence.tokens) // self._block_size)
        self._most_in_use = max(self._most_in_use, self._n_occupied - self._n_kept)
        return Allocation(n_shared, copies)

    def grow(self, sequence: SequenceState) -> list[CacheCopy] | None:
        """A row for all tokens of a sequence that has one; None: there is no room now."""
        holder, copies = self._holders[sequence.id], list[CacheCopy]()
        if len(sequence.tokens) <= holder.row.capacity:
            return copies
        row = self._take(self._capacity(len(sequence.tokens)), copies)
        if row is None:
            return None
        self._move(holder, row, copies)
        self._most_in_use = max(self._most_in_use, self._n_occupied - self._n_kept)
        return copies

    def computed(self, sequence: SequenceState) -> None:
        """Note that the first `sequence.n_cached` tokens are in the row."""
        holder = self._holders[sequence.id]
        holder.n_computed = sequence.n_cached
        if self._per_token:
            self._list(holder, sequence.n_cached // self._block_size)

    def suspend(self, sequence: SequenceState) -> None:
        """Free the row of a sequence that will ask for room again."""
        self._release(self._holders[sequence.id])

    def finish(self, sequence: SequenceState) -> None:
        """Free the row of a sequence when the room is needed; until then others can copy from it.

        Finished sequences keep no more room than running ones have had at most, so that memory stays bounded.
        """
        holder = self._holders[sequence.id]
        n_blocks = holder.n_computed // self._block_size
        self._unlist(holder, n_blocks)
        if not self._per_token:
            self._list(holder, n_blocks)
        if holder.n_listed:
            self._kept[sequence.id] = None
            self._n_kept += holder.row.capacity
            while self._n_kept > self._most_in_use:
                self._release(self._holders[next(iter(self._kept))])
        else:
            self._release(holder)

    def discard(self, sequence: SequenceState) -> Row:
        """Free the row of a sequence, whose tokens nobody may use; returns it."""
        holder = self._holders[sequence.id]
        self._release(holder)
        return holder.row

    def close_gaps(self) -> list[CacheCopy]:
        """Move running sequences from the highest rows to free ones below them; returns the moves.

        A pass attends to adjacent rows in one call. A move takes the time of a few calls, and there is at most one for
        each sequence that has ended.
        """
        copies = list[CacheCopy]()
        for capacity, n_rows in self._n_rows.items():
            if self._lowest_free(capacity) == n_rows:
                continue
            rows = sorted(
                row for row, holder in self._by_row.items() if self._runs(holder) and row.capacity == capacity
            )
            while rows and self._lowest_free(capacity) < rows[-1].index:
                self._move_down(self._by_row[rows.pop()], copies)
        return copies

    def forget(self) -> None:
        """Free the rows of finished sequences; no others have any."""
        assert self._kept.keys() == self._holders.keys(), "sequences that have rows go on with what was computed"
        for holder in [*self._holders.values()]:
            self._release(holder)
        self._index.forget()

    # ------------------------------------------------------------------ tokens that are in some row

    def _alike(self, sequence: SequenceState) -> Iterator[tuple[int, _Holder]]:
        """Pairs (n_tokens, holder) of rows that begin or will begin with the same `n_tokens`, the most first."""
        for n_tokens, sequence_id in self._index.candidates(sequence):
            holder = self._holders[sequence_id]
            if holder.sequence.tokens[:n_tokens] == sequence.tokens[:n_tokens]:
                yield n_tokens, holder

    def _source(self, sequence: SequenceState) -> tuple[_Holder | None, int]:
        """The row from which the most tokens of a sequence can be copied, and their number."""
        parent, n_parent = self._from_parent(sequence)
        for n_tokens, holder in self._alike(sequence):
            if n_tokens <= n_parent:
                break
            if holder.n_computed >= n_tokens:
                n_equal = _n_equal(holder, sequence, n_tokens)
                if self._per_token or n_equal == holder.n_computed:
                    return holder, n_equal
        return parent, n_parent

    def _from_parent(self, sequence: SequenceState) -> tuple[_Holder | None, int]:
        parent = None if sequence.parent_id is None else self._holders.get(sequence.parent_id)
        if parent is None:
            return None, 0
        n_shared = self._index.n_from_parent(sequence, parent.sequence, parent.n_computed, per_token=self._per_token)
        return (parent, n_shared) if n_shared else (None, 0)

    def _can_be_taken_over(self, holder: _Holder, sequence: SequenceState, capacity: int) -> bool:
        """Whether a row can become that of another sequence, because that one has all of its listed blocks."""
        if self._runs(holder) or holder.row.capacity != capacity:
            return False
        n_tokens = holder.n_listed * self._block_size
        return holder.sequence.tokens[:n_tokens] == sequence.tokens[:n_tokens]

    def _runs(self, holder: _Holder) -> bool:
        return holder.sequence.id not in self._kept

    def _touch(self, holder: _Holder) -> None:
        """Make a row of a finished sequence the most recently used one."""
        if not self._runs(holder):
            self._kept[holder.sequence.id] = self._kept.pop(holder.sequence.id)

    def _list(self, holder: _Holder, n_blocks: int) -> None:
        """List at least the first `n_blocks` blocks of a row in the index, if they can be shared."""
        if self._shares and n_blocks > holder.n_listed and self._index.is_shareable(holder.sequence):
            self._index.add(holder.sequence, range(holder.n_listed, n_blocks))
            holder.n_listed = n_blocks

    def _unlist(self, holder: _Holder, n_blocks: int = 0) -> None:
        """List at most the first `n_blocks` blocks of a row in the index."""
        if n_blocks < holder.n_listed:
            self._index.remove(holder.sequence, range(n_blocks, holder.n_listed))
            holder.n_listed = n_blocks

    # ------------------------------------------------------------------ rows

    def _capacity(self, n_tokens: int) -> int:
        """The smallest capacity for a number of tokens."""
        return row_capacity(n_tokens, self._block_size)

    def _take(self, capacity: int, copies: list[CacheCopy], source: _Holder | None = None) -> Row | None:
        """Occupy the lowest free row of a capacity; None if there is room for it neither now nor without kept rows.

        Rows of finished sequences give way, but not `source`. If there is room but not in one place, rows are moved,
        and the moves are added to `copies`.
        """
        while self._n_occupied + capacity > self.n_tokens:
            oldest = next((each for each in self._kept if source is None or each != source.sequence.id), None)
            if oldest is None:
                return None
            self._release(self._holders[oldest])
        while self._lowest_free(capacity) == self._n_rows.get(capacity, 0) and (
            self._n_spanned + capacity > self.n_tokens
        ):
            self._move_highest_down(copies)
        row = Row(capacity, self._lowest_free(capacity))
        self._occupy(row)
        return row

    def _lowest_free(self, capacity: int) -> int:
        """Index of the lowest row of a capacity that has no holder, which may be one that is not there yet."""
        free, n_rows = self._free.setdefault(capacity, []), self._n_rows.get(capacity, 0)
        while free and free[0] < n_rows and Row(capacity, free[0]) in self._by_row:
            heapq.heappop(free)
        if free and free[0] < n_rows:
            return free[0]
        free.clear()
        return n_rows

    def _move_highest_down(self, copies: list[CacheCopy]) -> None:
        """Move the highest row of some capacity to a free one below it."""
        capacity = max(each for each, n in self._n_rows.items() if self._lowest_free(each) < n)
        self._move_down(self._by_row[Row(capacity, self._n_rows[capacity] - 1)], copies)

    def _move_down(self, holder: _Holder, copies: list[CacheCopy]) -> None:
        """Move a row to the lowest free one of its capacity."""
        row = Row(holder.row.capacity, self._lowest_free(holder.row.capacity))
        self._occupy(row)
        self._move(holder, row, copies)

    def _move(self, holder: _Holder, row: Row, copies: list[CacheCopy]) -> None:
        """Move the tokens of a row to another one, which is occupied for them."""
        if holder.n_computed:
            copies.append(CacheCopy(holder.row, row, holder.n_computed))
        self._by_row[row] = holder
        self._vacate(holder.row)
        holder.row = row

    def _occupy(self, row: Row) -> None:
        n_rows = self._n_rows.get(row.capacity, 0)
        self._n_occupied += row.capacity
        if row.index >= n_rows:
            self._n_rows[row.capacity] = row.index + 1
            self._n_spanned += (row.index + 1 - n_rows) * row.capacity

    def _vacate(self, row: Row) -> None:
        capacity = row.capacity
        del self._by_row[row]
        self._n_occupied -= capacity
        heapq.heappush(self._free.setdefault(capacity, []), row.index)
        while self._n_rows[capacity] and Row(capacity, self._n_rows[capacity] - 1) not in self._by_row:
            self._n_rows[capacity] -= 1
            self._n_spanned -= capacity

    def _release(self, holder: _Holder) -> None:
        """Free a row; its tokens are lost."""
        self._unlist(holder)
        del self._holders[holder.sequence.id]
        if not self._runs(holder):
            del self._kept[holder.sequence.id]
            self._n_kept -= holder.row.capacity
        self._vacate(holder.row)


def row_capacity(n_tokens: int, block_size: int = BLOCK_SIZE) -> int:
    """The smallest capacity of a row for a number of tokens, given that of the smallest rows."""
    return block_size << ((n_tokens - 1) // block_size).bit_length()


def _n_equal(holder: _Holder, sequence: SequenceState, n_tokens: int) -> int:
    """Number of the first tokens in a row that are those of a sequence, at least `n_tokens`; without its last one."""
    limit = min(holder.n_computed, len(sequence.tokens) - 1)
    while n_tokens < limit and holder.sequence.tokens[n_tokens] == sequence.tokens[n_tokens]:
        n_tokens += 1
    return n_tokens
