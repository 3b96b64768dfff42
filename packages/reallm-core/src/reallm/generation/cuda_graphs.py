"""`DecodeGraphs`: decoding steps as CUDA graphs, each of which is one launch instead of hundreds.

Shapes: B sequences of a graph, N pages of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from reallm.generation.kv_store import Kind
from reallm.generation.page_store import PagePlan, PageStore, ids_of, slots_of
from reallm.generation.step import ScheduledSequence
from reallm.model.attention.varlen import PagedSequences
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer

Replay = Callable[[], None]
"""Computes again what was captured, from the inputs as they are now, into the same result."""
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""`capture(compute)` -> a function that computes again, and the result."""


class CUDAGraphs:
    """Captures computations as CUDA graphs that share memory: a result is there until the next one is computed."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Capture a computation; returns a function that replays it, and its result."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()  # libraries choose kernels and allocate workspaces in the first run
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        return graph.replay, result


class DecodeGraphs:
    """Decoding steps of a network over pages, captured once for each power of two of sequences.

    A step with fewer sequences is filled up with ones that write to a page that no sequence has. Weights that are
    updated in place need no new capture; if parameters or pages have moved, all graphs are captured again.

    Args:
        network: a network that `can_be_captured`.
        store: its pages.
        capture: captures a computation; None: as a CUDA graph.
    """

    def __init__(self, network: Transformer, store: PageStore, capture: Capture | None = None) -> None:
        self.network, self.store = network, store
        self._capture = CUDAGraphs() if capture is None else capture
        self._n_pages = min(store.n_pages, -(-network.config.max_positions // store.page_size))
        """Number of pages N that a sequence can have in a graph; steps with longer ones are not replayed."""
        self._graphs: dict[int, _Graph] = {}
        self._addresses: list[int] = []

    @property
    def n_captured(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def fit(self, sequences: Sequence[ScheduledSequence]) -> bool:
        """Whether a step can be computed by a graph: one new token for each sequence, and not too long ones."""
        longest = self._n_pages * self.store.page_size
        return all(Kind.of(sequence) is Kind.DECODE and sequence.n_cached < longest for sequence in sequences)

    def run(self, sequences: Sequence[ScheduledSequence], tokens: Sequence[int]) -> Tensor:
        """Logits [len(sequences), V] after the new token of each sequence; valid until the next run."""
        addresses = [parameter.data_ptr() for parameter in self.network.parameters()]
        addresses += [tensor.data_ptr() for block in self.store.pages.values() for tensor in block]
        if addresses != self._addresses:
            self._graphs, self._addresses = {}, addresses
        size = 1 << (len(sequences) - 1).bit_length()
        graph = self._graphs.get(size)
        if graph is None:
            inputs = _Inputs.allocate(size, self._n_pages, self.store)
            graph = self._graphs[size] = _Graph(inputs, *self._capture(lambda: self._forward(inputs)))
        graph.inputs.fill(sequences, tokens)
        graph.replay()
        return graph.logits[: len(sequences)]

    def clear(self) -> None:
        """Free the memory of all graphs; they are captured again when they are needed."""
        self._graphs = {}

    def _forward(self, inputs: _Inputs) -> Tensor:
        cache = self.store.cache_of(PagePlan(inputs.slots, started=None, continued=inputs.paged))
        return self.network.head(self.network.forward_hidden(inputs.tokens, inputs.packed, cache))


def can_be_captured(network: Transformer) -> bool:
    """Whether decoding never waits for the device and has the same steps each time.

    Experts are chosen on the host, RoPE may depend on lengths, and custom layers may do anything.
    """
    config = network.config
    return (
        network.tp_size == 1
        and config.moe is None
        and not any(rope.depends_on_length for rope in config.distinct_ropes)
        and not config.custom_classes
    )


@dataclass(frozen=True)
class _Graph:
    inputs: _Inputs
    replay: Replay
    logits: Tensor


@dataclass(frozen=True)
class _Inputs:
    """Tensors that a graph reads, filled before each replay."""

    tokens: Tensor
    """[B]"""
    slots: Tensor
    """[B]; see `PagePlan`."""
    packed: _StaticSequences
    paged: PagedSequences
    unused_page: int
    page_size: int

    @classmethod
    def allocate(cls, size: int, n_pages: int, store: PageStore) -> _Inputs:
        """Inputs for `size` sequences of up to `n_pages` pages, none of which is used."""
        tokens, slots, positions = torch.zeros(3, size, dtype=torch.int64, device=store.device)
        cu_seqlens = torch.arange(size + 1, dtype=torch.int32, device=store.device)
        paged = PagedSequences(
            cu_seqlens=cu_seqlens,
            totals=torch.ones(size, dtype=torch.int32, device=store.device),
            cu_totals=cu_seqlens.clone(),
            pages=torch.zeros(size, n_pages, dtype=torch.int32, device=store.device),
            max_length=1,
            max_total=n_pages * store.page_size,
        )
        inputs = cls(tokens, slots, _StaticSequences.at(positions, cu_seqlens), paged, store.n_pages, store.page_size)
        inputs.fill([], [])
        return inputs

    def fill(self, sequences: Sequence[ScheduledSequence], tokens: Sequence[int]) -> None:
        """Write the sequences of a step, and let the rest be of one token each, in a page that no sequence has."""
        n_unused, width = len(self.tokens) - len(sequences), self.paged.pages.shape[1]
        unused = self.unused_page
        slots = [slot for each in sequences for slot in slots_of(each, self.page_size)]
        totals = [*(each.n_cached + 1 for each in sequences), *[1] * n_unused]
        pages = [ids_of(each.placement)[:width] for each in sequences] + [()] * n_unused
        for tensor, values in (
            (self.tokens, [*tokens, *[0] * n_unused]),
            (self.slots, [*slots, *[unused * self.page_size] * n_unused]),
            (self.packed.positions, [total - 1 for total in totals]),
            (self.paged.totals, totals),
            (self.paged.cu_totals, [0, *accumulate(totals)]),
            (self.paged.pages, [[*ids, *[unused] * (width - len(ids))] for ids in pages]),
        ):
            tensor.copy_(torch.tensor(values))


@dataclass(frozen=True)
class _StaticSequences(PackedSequences):
    """Sequences with one new token each, at positions [B] that are filled in before each pass."""

    positions: Tensor

    @classmethod
    def at(cls, positions: Tensor, cu_seqlens: Tensor) -> _StaticSequences:
        """Sequences whose new tokens have these positions."""
        n = len(positions)
        return cls((1,) * n, cu_seqlens, (0,) * n, positions)
