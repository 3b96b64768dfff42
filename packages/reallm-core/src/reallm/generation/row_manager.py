"""`RowManager`: gives each sequence a row of a cache whose rows have capacities of 256, 512, 1024, ... tokens.

A sequence that outgrows its row moves to one of the next capacity: less than half of a row is ever unused once it has
256 tokens. The lowest free row of a capacity comes first, so that the tensors of rows stay short. Imports no torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from reallm.generation.cache_manager import Allocation
from reallm.generation.prefix_index import BLOCK_SIZE, PrefixIndex
from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Row

SMALLEST_ROW = 256
"""Capacity of the smallest rows, in tokens."""


def row_capacity(n_tokens: int) -> int:
    """The smallest capacity of a row for `n_tokens`: 256 * 2^k."""
    return max(SMALLEST_ROW, 1 << (n_tokens - 1).bit_length())


@dataclass(eq=False)
class _Holder:
    """A row, and the sequence whose tokens it has."""

    sequence: SequenceState
    row: Row
    n_computed: int
    """Number of tokens that are in the row once the copies planned so far are made."""
    n_listed: int = 0
    """Number of blocks that the index has of it: those in the row, and those of its prompt that it will compute."""
    has_children: bool = False


class RowManager:
    """The rows of a cache; see `CacheManager` for the methods.

    Args:
        n_tokens: number of tokens that all rows together have room for.
        prefix_sharing: whether a prompt whose beginning is in some row is copied from there.
        per_token: whether all that layers keep is per token. If not, a row can only be copied with all its tokens.
        longest_shareable: see `PrefixIndex`.
    """

    def __init__(
        self,
        n_tokens: int,
        *,
        prefix_sharing: bool = True,
        per_token: bool = True,
        longest_shareable: int | None = None,
    ) -> None:
        self.n_tokens = n_tokens
        self._shares, self._per_token = prefix_sharing and per_token, per_token
        self._index = PrefixIndex(longest_shareable)
        self._holders: dict[int, _Holder] = {}
        self._kept: dict[int, None] = {}  # ids of sequences that have ended, the least recently used first
        self._by_row: dict[Row, _Holder] = {}
        self._n_rows: dict[int, int] = {}  # capacity -> 1 + index of the highest row that has a holder
        self._free: dict[int, list[int]] = {}  # capacity -> heap with all free rows below that one
        self._n_held = 0  # tokens of the rows in `_n_rows`
        self._n_occupied = 0  # tokens of the rows that have a holder
        self._n_kept = 0  # tokens of the rows in `_kept`

    @property
    def n_free_tokens(self) -> int:
        """Number of tokens that no running sequence has room for."""
        return self.n_tokens - self._n_occupied + self._n_kept

    @property
    def longest_sequence(self) -> int:
        """Number of tokens of the longest sequence that fits when nothing else is there."""
        return 0 if self.n_tokens < SMALLEST_ROW else 1 << (self.n_tokens.bit_length() - 1)

    @property
    def n_rows(self) -> Mapping[int, int]:
        """Capacity -> number of rows that must be there; see `Step.n_rows`."""
        return {capacity: n for capacity, n in self._n_rows.items() if n}

    def placement(self, sequence: SequenceState) -> Row:
        """The row of a sequence."""
        return self._holders[sequence.id].row

    # ------------------------------------------------------------------ sequences come, grow and go

    def waits(self, sequence: SequenceState) -> bool:
        """Whether a running sequence is about to compute tokens that this one begins with."""
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
        capacity = row_capacity(len(sequence.tokens))
        source, n_shared = self._source(sequence)
        copies: list[CacheCopy] = []
        if source is not None and self._can_be_taken_over(source, n_shared, capacity):
            self._release(source)
            row = source.row
            self._occupy(row)
        else:
            taken = self._take(capacity, copies, source)
            if taken is None and source is not None:  # what could be copied is in the way
                source, n_shared = None, 0
                taken = self._take(capacity, copies)
            if taken is None:
                return None
            row = taken
            if source is not None:
                copies.append(CacheCopy(source.row, row, n_shared))
                if source.sequence.id in self._kept:
                    self._kept[source.sequence.id] = self._kept.pop(source.sequence.id)
        holder = _Holder(sequence, row, n_shared)
        self._holders[sequence.id] = self._by_row[row] = holder
        self._list(holder, len(sequence.tokens) // BLOCK_SIZE)
        return Allocation(n_shared, copies)

    def grow(self, sequence: SequenceState, n_tokens: int) -> list[CacheCopy] | None:
        """A row for the first `n_tokens` of a sequence that has one; None: there is no room now."""
        holder = self._holders[sequence.id]
        if n_tokens <= holder.row.capacity:
            return []
        copies: list[CacheCopy] = []
        row = self._take(row_capacity(n_tokens), copies)
        if row is None:
            return None
        if holder.n_computed:
            copies.append(CacheCopy(holder.row, row, holder.n_computed))
        self._vacate(holder.row)
        holder.row = row
        self._by_row[row] = holder
        return copies

    def computed(self, sequence: SequenceState) -> None:
        """Note that the first `sequence.n_cached` tokens are in the row."""
        holder = self._holders[sequence.id]
        if sequence.n_cached < holder.n_computed or not self._index.shareable(sequence):
            self._unlist(holder)
        holder.n_computed = sequence.n_cached
        self._list(holder, sequence.n_cached // BLOCK_SIZE)

    def release(self, sequence: SequenceState) -> None:
        """Free the row of a sequence, and let nobody use what is in it."""
        self._release(self._holders[sequence.id])

    def finish(self, sequence: SequenceState, *, has_children: bool = False) -> None:
        """Free the row of a sequence that has ended, when the room is needed; until then others can copy from it."""
        holder = self._holders[sequence.id]
        self._unlist(holder, holder.n_computed // BLOCK_SIZE)
        if holder.n_listed or has_children:
            holder.has_children = has_children
            self._kept[sequence.id] = None
            self._n_kept += holder.row.capacity
        else:
            self._release(holder)

    def forget(self) -> None:
        """Let no sequence use what was computed before."""
        for sequence_id in [*self._kept]:
            self._release(self._holders[sequence_id])
        self._index.forget()
        for holder in self._holders.values():
            holder.n_computed = holder.n_listed = 0

    # ------------------------------------------------------------------ what is in the rows

    def _alike(self, sequence: SequenceState) -> Iterator[tuple[int, _Holder]]:
        """Pairs (number of tokens, holder) of rows that begin or will begin with as many tokens, the most first."""
        if not self._shares:
            return
        for n_tokens, sequence_id in self._index.candidates(sequence):
            holder = self._holders[sequence_id]
            if holder.sequence.tokens[:n_tokens] == sequence.tokens[:n_tokens]:
                yield n_tokens, holder

    def _source(self, sequence: SequenceState) -> tuple[_Holder | None, int]:
        """The row from which most tokens of a sequence can be copied, and their number."""
        best, n_best = self._from_parent(sequence)
        for n_tokens, holder in self._alike(sequence):
            if n_tokens <= n_best:
                break
            if holder.n_computed >= n_tokens:
                limit = min(holder.n_computed, len(sequence.tokens) - 1)
                while n_tokens < limit and holder.sequence.tokens[n_tokens] == sequence.tokens[n_tokens]:
                    n_tokens += 1
                return holder, n_tokens
        return best, n_best

    def _from_parent(self, sequence: SequenceState) -> tuple[_Holder | None, int]:
        parent = None if sequence.parent_id is None else self._holders.get(sequence.parent_id)
        if parent is None:
            return None, 0
        n_shared = min(parent.n_computed, sequence.n_shared)
        may_have_gone_on = self._per_token and self._index.shareable(parent.sequence)
        return (parent, n_shared) if n_shared and (may_have_gone_on or n_shared == parent.n_computed) else (None, 0)

    def _can_be_taken_over(self, holder: _Holder, n_shared: int, capacity: int) -> bool:
        """Whether a row can go on as that of another sequence, without losing a block that somebody may look for."""
        is_kept = holder.sequence.id in self._kept
        return (
            is_kept
            and not holder.has_children
            and holder.row.capacity == capacity
            and (n_shared // BLOCK_SIZE == holder.n_computed // BLOCK_SIZE)
        )

    def _list(self, holder: _Holder, n_blocks: int) -> None:
        """Let the index have the first blocks of a row, as many as it has already or `n_blocks`."""
        if n_blocks <= holder.n_listed or not self._shares or not self._index.shareable(holder.sequence):
            return
        for block_hash in self._index.hashes(holder.sequence, n_blocks)[holder.n_listed :]:
            self._index.add(block_hash, holder.sequence.id)
        holder.n_listed = n_blocks

    def _unlist(self, holder: _Holder, n_blocks: int = 0) -> None:
        """Let the index have no more than the first `n_blocks` blocks of a row."""
        if holder.n_listed <= n_blocks:
            return
        for block_hash in self._index.hashes(holder.sequence, holder.n_listed)[n_blocks:]:
            self._index.remove(block_hash, holder.sequence.id)
        holder.n_listed = n_blocks

    # ------------------------------------------------------------------ rows

    def _take(self, capacity: int, copies: list[CacheCopy], source: _Holder | None = None) -> Row | None:
        """Occupy the lowest free row of a capacity; None if all room is in use, apart from a row to copy from.

        Rows of sequences that have ended give way, the least recently used first. If there is room but not in one
        place, rows move down: `copies` gets their moves.
        """
        while self._n_occupied + capacity > self.n_tokens:
            victim = next((each for each in self._kept if source is None or each != source.sequence.id), None)
            if victim is None:
                return None
            self._release(self._holders[victim])
        while (index := self._lowest_free(capacity)) == self._n_rows.get(capacity, 0) and (
            self._n_held + capacity > self.n_tokens
        ):
            self._move_down(copies)
        row = Row(capacity, index)
        self._occupy(row)
        return row

    def _lowest_free(self, capacity: int) -> int:
        """Index of the lowest row of a capacity that has no holder; one more than the highest if there is none."""
        free, n_rows = self._free.setdefault(capacity, []), self._n_rows.get(capacity, 0)
        while free and free[0] < n_rows and Row(capacity, free[0]) in self._by_row:
            heapq.heappop(free)
        if free and free[0] < n_rows:
            return free[0]
        free.clear()
        return n_rows

    def _move_down(self, copies: list[CacheCopy]) -> None:
        """Move the highest row of a capacity to a free one below it."""
        capacity = max(each for each, n in self._n_rows.items() if self._lowest_free(each) < n)
        highest = self._by_row[Row(capacity, self._n_rows[capacity] - 1)]
        row = Row(capacity, self._lowest_free(capacity))
        if highest.n_computed:
            copies.append(CacheCopy(highest.row, row, highest.n_computed))
        self._vacate(highest.row)
        self._occupy(row)
        highest.row = row
        self._by_row[row] = highest

    def _occupy(self, row: Row) -> None:
        self._n_occupied += row.capacity
        n_rows = self._n_rows.get(row.capacity, 0)
        if row.index >= n_rows:
            self._n_rows[row.capacity] = row.index + 1
            self._n_held += (row.index + 1 - n_rows) * row.capacity

    def _vacate(self, row: Row) -> None:
        capacity = row.capacity
        del self._by_row[row]
        self._n_occupied -= capacity
        heapq.heappush(self._free[capacity], row.index)
        while self._n_rows[capacity] and Row(capacity, self._n_rows[capacity] - 1) not in self._by_row:
            self._n_rows[capacity] -= 1
            self._n_held -= capacity

    def _release(self, holder: _Holder) -> None:
        """Free a row, whose content is lost."""
        self._unlist(holder)
        del self._holders[holder.sequence.id]
        if holder.sequence.id in self._kept:
            del self._kept[holder.sequence.id]
            self._n_kept -= holder.row.capacity
        self._vacate(holder.row)
