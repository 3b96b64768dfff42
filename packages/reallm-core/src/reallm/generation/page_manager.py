"""`PageManager`: gives sequences pages of the cache, of 256 tokens each, some of which several sequences may read.

A page is written by one sequence, until it is full; others that begin with the same tokens then have it too. Pages that
nobody has are found again by the hash of their block until they are needed. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reallm.generation.cache_manager import Allocation
from reallm.generation.prefix_index import BLOCK_SIZE, KeysAreStale, PrefixIndex
from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Pages


@dataclass(eq=False)
class _Block:
    """A full page that can be found by its tokens and those before them."""

    page: int
    block_hash: int
    tokens: list[int]
    before: _Block | None


@dataclass(eq=False)
class _Holder:
    """The pages of a sequence."""

    sequence: SequenceState
    pages: list[int]
    n_computed: int
    """Number of tokens that are in the pages once the copies planned so far are made."""
    blocks: list[_Block]
    """Its full blocks, in these pages or in others with the same tokens; none if nobody may find them."""
    listed: range = range(0)
    """Numbers of the blocks in the index: those that are about to be full."""


class PageManager:
    """The pages of a cache.

    Args:
        n_tokens: number of tokens for which all pages together have room, rounded down to pages.
        prefix_sharing: whether a page that has the beginning of a prompt is used for it.
        keys_are_stale: see `PrefixIndex`.
        page_size: number of tokens of a page.
    """

    def __init__(
        self,
        n_tokens: int,
        *,
        prefix_sharing: bool = True,
        keys_are_stale: KeysAreStale | None = None,
        page_size: int = BLOCK_SIZE,
    ) -> None:
        n_pages = n_tokens // page_size
        self.n_tokens = n_pages * page_size
        self._page_size, self._shares = page_size, prefix_sharing
        self._holders: dict[int, _Holder] = {}
        self._index = PrefixIndex(page_size, keys_are_stale)
        self._n_holders: dict[int, int] = {}  # page -> number of sequences that have it, if any
        self._empty = [*range(n_pages - 1, -1, -1)]  # pages that nobody has or looks for, the next one last
        self._kept: dict[int, None] = {}  # pages that nobody has but somebody may look for, the oldest first
        self._by_hash: dict[int, _Block] = {}
        self._by_page: dict[int, _Block] = {}

    @property
    def n_free_tokens(self) -> int:
        """Number of tokens for which there is room besides that of running sequences."""
        return self._n_free_pages * self._page_size

    @property
    def longest_sequence(self) -> int:
        """The number of tokens of all pages."""
        return self.n_tokens

    @property
    def n_rows(self) -> Mapping[int, int]:
        """Nothing: there are no rows."""
        return {}

    def placement(self, sequence: SequenceState) -> Pages:
        """The pages of a sequence."""
        return Pages(tuple(self._holders[sequence.id].pages))

    # ------------------------------------------------------------------ sequences come, grow and go

    def waits(self, sequence: SequenceState) -> bool:
        """Whether a running sequence is about to compute tokens with which this one begins."""
        if not self._shares:
            return False
        n_found = len(self._found(sequence)) * self._page_size
        return any(
            n_tokens > n_found and self._holders[sequence_id].sequence.tokens[:n_tokens] == sequence.tokens[:n_tokens]
            for n_tokens, sequence_id in self._index.candidates(sequence)
        )

    def allocate(self, sequence: SequenceState) -> Allocation | None:
        """Pages for all tokens of a sequence, some of them with its first tokens; None: there is no room now."""
        size = self._page_size
        blocks = self._found(sequence) if self._shares else []
        shared, n_shared = [block.page for block in blocks], len(blocks) * size
        parent, n_parent = self._from_parent(sequence)
        if parent is not None and n_parent > n_shared:
            blocks, shared, n_shared = parent.blocks[: n_parent // size], parent.pages[: n_parent // size], n_parent
        n_new = self._n_pages(sequence) - len(shared)
        if n_new > self._n_free_pages - sum(page in self._kept for page in shared):
            return None
        for page in shared:
            self._share(page)
        pages = shared + [self._take() for _ in range(n_new)]
        copies = []
        if parent is not None and n_shared % size:  # a page that is not full is not shared but copied
            n_pages = len(shared) + 1
            copies = [CacheCopy(Pages(tuple(parent.pages[:n_pages])), Pages(tuple(pages[:n_pages])), n_shared)]
        holder = _Holder(sequence, pages, n_shared, blocks)
        self._holders[sequence.id] = holder
        if self._shares and self._index.is_shareable(sequence):
            holder.listed = range(n_shared // size, len(sequence.tokens) // size)
            self._index.add(sequence, holder.listed)
        return Allocation(n_shared, copies)

    def grow(self, sequence: SequenceState) -> list[CacheCopy] | None:
        """Pages for all tokens of a sequence that has some; None: there is no room now."""
        pages = self._holders[sequence.id].pages
        n_new = self._n_pages(sequence) - len(pages)
        if n_new > self._n_free_pages:
            return None
        pages += [self._take() for _ in range(n_new)]
        return []

    def computed(self, sequence: SequenceState) -> None:
        """Note that the first `sequence.n_cached` tokens are in the pages."""
        holder = self._holders[sequence.id]
        holder.n_computed = sequence.n_cached
        n_full = sequence.n_cached // self._page_size
        if holder.listed and n_full > holder.listed.start:
            self._unlist(holder, n_full)
        if self._shares and n_full > len(holder.blocks) and self._index.is_shareable(sequence):
            for block_hash in self._index.hashes(sequence, n_full)[len(holder.blocks) :]:
                holder.blocks.append(self._block(holder, block_hash))

    def suspend(self, sequence: SequenceState) -> None:
        """Take back the pages of a sequence that will ask for room again."""
        self.finish(sequence)

    def finish(self, sequence: SequenceState) -> None:
        """Take back the pages of a sequence; those that can be found stay until they are needed."""
        holder = self._holders.pop(sequence.id)
        self._unlist(holder, holder.listed.stop)
        for page in reversed(holder.pages):  # the last block of a sequence is of no use without the first
            self._n_holders[page] -= 1
            if not self._n_holders[page]:
                del self._n_holders[page]
                if page in self._by_page:
                    self._kept[page] = None
                else:
                    self._empty.append(page)

    def discard(self, sequence: SequenceState) -> Pages:
        """Take back the pages of a sequence, which nobody may find; returns those that no other sequence has."""
        pages = self._holders[sequence.id].pages
        for block in [self._by_page[page] for page in pages if page in self._by_page]:
            self._forget_block(block)
        self.finish(sequence)
        return Pages(tuple(page for page in pages if page not in self._n_holders))

    def close_gaps(self) -> list[CacheCopy]:
        """Nothing: pages are read together wherever they are."""
        return []

    def forget(self) -> None:
        """Let nobody find what was computed before; no sequence has pages."""
        assert not self._holders, "sequences that have pages go on with what was computed"
        for block in [*self._by_hash.values()]:
            self._forget_block(block)
        self._index.forget()

    # ------------------------------------------------------------------ tokens that are in some page

    def _found(self, sequence: SequenceState) -> list[_Block]:
        """The blocks with the first tokens of a sequence, but not its last token."""
        found: list[_Block] = []
        if not self._by_hash or not self._index.is_shareable(sequence):
            return found
        size = self._page_size
        for number, block_hash in enumerate(self._index.hashes(sequence, (len(sequence.tokens) - 1) // size)):
            block = self._by_hash.get(block_hash)
            if block is None or block.before is not (found[-1] if found else None):
                break
            if block.tokens != sequence.tokens[number * size : (number + 1) * size]:
                break
            found.append(block)
        return found

    def _from_parent(self, sequence: SequenceState) -> tuple[_Holder | None, int]:
        """The pages of the parent, if there is one, and the number of tokens for which they can be used."""
        parent = None if sequence.parent_id is None else self._holders.get(sequence.parent_id)
        if parent is None:
            return None, 0
        n_shared = self._index.n_from_parent(sequence, parent.sequence, parent.n_computed)
        return (parent, n_shared) if n_shared else (None, 0)

    def _block(self, holder: _Holder, block_hash: int) -> _Block:
        """The next full block of a sequence, which can be found from now on."""
        number, before = len(holder.blocks), holder.blocks[-1] if holder.blocks else None
        page = holder.pages[number]
        tokens = holder.sequence.tokens[number * self._page_size : (number + 1) * self._page_size]
        known = self._by_hash.get(block_hash)
        if known is not None:
            if known.before is before and known.tokens == tokens:
                return known
            self._forget_block(known)  # nobody finds it any more, because the one before it is gone
        block = _Block(page, block_hash, tokens, before)
        self._by_hash[block_hash] = self._by_page[page] = block
        return block

    def _forget_block(self, block: _Block) -> None:
        del self._by_hash[block.block_hash], self._by_page[block.page]
        if block.page in self._kept:
            del self._kept[block.page]
            self._empty.append(block.page)

    def _unlist(self, holder: _Holder, n_blocks: int) -> None:
        """Take blocks up to a number out of the index."""
        full = range(holder.listed.start, min(n_blocks, holder.listed.stop))
        self._index.remove(holder.sequence, full)
        holder.listed = range(full.stop, holder.listed.stop)

    # ------------------------------------------------------------------ pages

    @property
    def _n_free_pages(self) -> int:
        return len(self._empty) + len(self._kept)

    def _n_pages(self, sequence: SequenceState) -> int:
        return -(-len(sequence.tokens) // self._page_size)

    def _share(self, page: int) -> None:
        """Give a page to one more sequence."""
        self._kept.pop(page, None)
        self._n_holders[page] = self._n_holders.get(page, 0) + 1

    def _take(self) -> int:
        """A page that nobody has: an empty one, else the one that was kept for the longest time."""
        if not self._empty:
            self._forget_block(self._by_page[next(iter(self._kept))])
        page = self._empty.pop()
        self._n_holders[page] = 1
        return page
