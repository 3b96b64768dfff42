"""`PageStore`: a KV store of pages for CUDA, some of which several sequences may read.

Shapes: P pages, T packed tokens, S sequences, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from reallm.generation.kv_store import Kind
from reallm.generation.step import CacheCopy, Pages, Placement, ScheduledSequence, Step
from reallm.model.attention import varlen
from reallm.model.attention.functional import AttentionSpec, attend_packed
from reallm.model.attention.kv_cache import BlockCache, CacheSpec, CacheTensor
from reallm.model.attention.varlen import PagedSequences
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer

PAGE_SIZE = 256
"""Number of tokens of a page; the kernel takes multiples of this."""

AttendPages = Callable[[Tensor, Tensor, Tensor, PagedSequences, AttentionSpec], Tensor]
"""`varlen.attend_pages`, or a function that computes the same."""


class PageStore:
    """A KV store of pages for networks whose attention layers all keep keys and values.

    Memory is allocated at the first step, for all pages, and one more that no sequence has.

    Args:
        specs: number of a block, from 1 -> the tensors that its attention keeps: keys and values.
        n_pages: number of pages P.
        tp: number of ranks among which each layer is split.
        dtype: dtype of the tensors.
        device: device of the tensors.
        attend: computes attention over pages.
    """

    page_size = PAGE_SIZE
    can_share_prefixes = True

    def __init__(
        self,
        specs: Mapping[int, CacheSpec],
        n_pages: int,
        *,
        tp: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cuda",
        attend: AttendPages = varlen.attend_pages,
    ) -> None:
        self.n_pages, self.device, self._attend = n_pages, torch.device(device), attend
        self._specs, self._tp, self._dtype = specs, tp, dtype
        self._pages: dict[int, tuple[Tensor, ...]] = {}
        """Number of a block -> its keys and values, [P + 1, page size, K, D] each."""

    @classmethod
    def of(cls, network: Transformer, n_tokens: int) -> PageStore:
        """A store of `n_tokens` tokens, rounded down to pages, for a network or a rank's part of it."""
        parameter = next(network.parameters())
        return cls(
            network.cache_specs(),
            n_tokens // PAGE_SIZE,
            tp=network.tp_size,
            dtype=parameter.dtype,
            device=parameter.device,
        )

    @property
    def bytes_held(self) -> int:
        """Number of bytes of all tensors."""
        return sum(tensor.nbytes for block in self._pages.values() for tensor in block)

    @property
    def pages(self) -> dict[int, tuple[Tensor, ...]]:
        """Number of a block -> its keys and values, [P + 1, page size, K, D] each; allocated when first needed."""
        if not self._pages:
            self._pages = {number: tuple(map(self._allocate, spec)) for number, spec in self._specs.items()}
        return self._pages

    def prepare(self, step: Step, *, exact: bool = False) -> PageCache:
        """Copy as a step says; returns the cache of its forward pass; see `KVStore.prepare`. It is never `exact`."""
        self.copy(step.copies)
        return self.cache_of(_plan(step.sequences, self.page_size, self.device))

    def copy(self, copies: Sequence[CacheCopy]) -> None:
        """Make the copies of a step: of pages that the two places do not have in common."""
        for copy in copies:
            n_pages = -(-copy.n_tokens // self.page_size)
            for source, target in zip(ids_of(copy.source)[:n_pages], ids_of(copy.target)[:n_pages], strict=True):
                if source != target:
                    for tensor in self._tensors():
                        tensor[target].copy_(tensor[source])

    def cache_of(self, plan: PagePlan) -> PageCache:
        """The cache of a forward pass with a given plan."""
        return PageCache(self.pages, plan, self._attend)

    def erase(self, placement: Placement) -> None:
        """Write zeros to pages that have held numbers that are not finite, before another sequence has them."""
        ids = torch.tensor(ids_of(placement), device=self.device)
        for tensor in self._tensors():
            tensor.index_fill_(0, ids, 0)

    def close(self) -> None:
        """Free all tensors; the next step starts from nothing."""
        self._pages = {}

    def _allocate(self, kept: CacheTensor) -> Tensor:
        # not empty: a number that is not finite is not masked by a weight of 0
        shape = self.n_pages + 1, self.page_size, *kept.local_shape(self._tp)
        return torch.zeros(shape, dtype=kept.dtype or self._dtype, device=self.device)

    def _tensors(self) -> Iterator[Tensor]:
        return (tensor for block in self.pages.values() for tensor in block)


@dataclass(frozen=True)
class PagePlan:
    """What all blocks do in one forward pass over pages."""

    slots: Tensor
    """[T] int64, where each token is written: page times page size, plus its place in the page."""
    started: PackedSequences | None
    """The first sequences of the pass, of which nothing is cached."""
    continued: PagedSequences | None
    """The others."""


class PageCache:
    """The cache of one forward pass over pages."""

    def __init__(self, pages: Mapping[int, tuple[Tensor, ...]], plan: PagePlan, attend: AttendPages) -> None:
        self.blocks = {number: PageBlock(tensors, plan, attend) for number, tensors in pages.items()}

    def advance(self, lengths: Sequence[int]) -> None:
        """Do nothing: blocks write to the pages themselves."""


class PageBlock(BlockCache):
    """The pages of one block in one forward pass."""

    def __init__(self, pages: tuple[Tensor, ...], plan: PagePlan, attend: AttendPages) -> None:
        self._pages, self._plan, self._attend = pages, plan, attend

    @property
    def n_started(self) -> int:
        """See `BlockCache.n_started`."""
        return 0 if self._plan.started is None else self._plan.started.n_tokens

    def append(self, *new: Tensor) -> None:
        """See `BlockCache.append`."""
        for held, each in zip(self._pages, new, strict=True):
            held.flatten(0, 1).index_copy_(0, self._plan.slots, each)

    def read_states(self) -> tuple[Tensor, ...]:
        """Nothing: networks with states have rows."""
        return ()

    def write_states(self, *states: Tensor) -> None:
        """Nothing: networks with states have rows."""
        assert not states

    def attend_started(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """See `BlockCache.attend_started`."""
        assert self._plan.started is not None
        return attend_packed(q, k, v, self._plan.started, spec)

    def attend_cached(self, q: Tensor, spec: AttentionSpec) -> Tensor:
        """See `BlockCache.attend_cached`."""
        assert self._plan.continued is not None
        keys, values = self._pages
        return self._attend(q, keys, values, self._plan.continued, spec)


def _plan(sequences: Sequence[ScheduledSequence], page_size: int, device: torch.device) -> PagePlan:
    kinds = [Kind.of(sequence) for sequence in sequences]
    assert kinds == sorted(kinds), "the sequences of a step are not in pack_order"
    n_started = kinds.count(Kind.START)
    slots = [slot for sequence in sequences for slot in slots_of(sequence, page_size)]
    started = PackedSequences.from_lengths([each.n_new for each in sequences[:n_started]], device=device)
    return PagePlan(
        torch.tensor(slots, device=device),
        started if n_started else None,
        _paged(sequences[n_started:], page_size, device) if n_started < len(sequences) else None,
    )


def slots_of(sequence: ScheduledSequence, page_size: int) -> list[int]:
    """Where the new tokens of a sequence are written; see `PagePlan.slots`."""
    ids = ids_of(sequence.placement)
    positions = range(sequence.n_cached, sequence.n_cached + sequence.n_new)
    return [ids[position // page_size] * page_size + position % page_size for position in positions]


def _paged(sequences: Sequence[ScheduledSequence], page_size: int, device: torch.device) -> PagedSequences:
    lengths = [each.n_new for each in sequences]
    totals = [each.n_cached + each.n_new for each in sequences]
    pages = [ids_of(each.placement)[: -(-total // page_size)] for each, total in zip(sequences, totals, strict=True)]
    width = max(map(len, pages))

    def int32(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return PagedSequences(
        cu_seqlens=int32([0, *accumulate(lengths)]),
        totals=int32(totals),
        cu_totals=int32([0, *accumulate(totals)]),
        pages=int32([[*ids, *[0] * (width - len(ids))] for ids in pages]),
        max_length=max(lengths),
        max_total=max(totals),
    )


def ids_of(placement: Placement) -> tuple[int, ...]:
    """The pages of a place, in the order of their tokens."""
    assert isinstance(placement, Pages), placement
    return placement.ids
