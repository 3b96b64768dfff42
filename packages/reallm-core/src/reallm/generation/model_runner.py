"""`ModelRunner`: the forward pass of one step of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reallm.generation.cuda_graphs import DecodeGraphs, can_be_captured
from reallm.generation.decode_pass import DecodePass
from reallm.generation.kv_store import Kind, KVStore, pack_order
from reallm.generation.page_store import PageStore
from reallm.generation.replica import LocalReplica, Replica
from reallm.generation.row_store import RowStore
from reallm.generation.step import ScheduledSequence, Step
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer


class ModelRunner:
    """Computes the logits of a step: all its sequences in one packed forward pass.

    Args:
        network: the whole network, or this rank's part of it.
        store: where its blocks keep what they need of earlier tokens.
        replica: the ranks that compute the pass together; None: this process alone.
    """

    def __init__(self, network: Transformer, store: KVStore, replica: Replica | None = None) -> None:
        self.network, self.store = network, store
        self._replica = LocalReplica(network) if replica is None else replica
        self._graphs: DecodeGraphs | None = None
        self._decode: DecodePass | None = None
        is_whole = isinstance(self._replica, LocalReplica)  # messages between ranks are not captured
        if is_whole and isinstance(store, PageStore) and store.device.type == "cuda" and can_be_captured(network):
            self._graphs = DecodeGraphs(network, store)
        if is_whole and isinstance(store, RowStore) and _device(network).type == "cpu":
            self._decode = DecodePass.of(network)

    @torch.no_grad()
    def run(self, step: Step, token_ids: Sequence[Sequence[int]]) -> Tensor | None:
        """Compute the new tokens of all sequences of a step.

        Args:
            step: the step.
            token_ids: new tokens of each of its sequences.

        Returns:
            Logits [A, V] after the last tokens of the sequences with `samples`, in their order. None on a stage of a
            pipeline that is not the last.
        """
        exact = self.network.exact
        order = sorted(range(len(step.sequences)), key=lambda i: pack_order(step.sequences[i], exact=exact))
        sequences = tuple(step.sequences[i] for i in order)
        tokens = [token for i in order for token in token_ids[i]]
        places = {i: place for place, i in enumerate(order)}
        sampled = [places[i] for i, sequence in enumerate(step.sequences) if sequence.samples]
        if self._graphs is not None and self._graphs.fit(sequences):
            self._graphs.store.copy(step.copies)
            logits = self._graphs.run(sequences, tokens)
            return logits[torch.tensor(sampled, dtype=torch.int64, device=logits.device)]
        return self._run(replace(step, sequences=sequences), tokens, sampled)

    def close(self) -> None:
        """Free the memory of the store and of CUDA graphs; the next step starts from nothing."""
        if self._graphs is not None:
            self._graphs.clear()
        self.store.close()

    def _run(self, step: Step, tokens: Sequence[int], sampled: Sequence[int]) -> Tensor | None:
        """Logits after the last tokens of some sequences, given by index, of a step that is in `pack_order`."""
        device = _device(self.network)
        cache = self.store.prepare(step, exact=self.network.exact)
        seqs = PackedSequences.from_lengths(
            [sequence.n_new for sequence in step.sequences],
            cached_lengths=[sequence.n_cached for sequence in step.sequences],
            device=device,
        )
        if self._decode is not None and all(map(_is_decoded, step.sequences)) and self._decode.is_possible:
            hidden: Tensor | None = self._decode.hidden(tokens, seqs, cache)
        else:
            hidden = self._replica.forward_hidden(torch.tensor(tokens, device=device), seqs, cache)
        if hidden is None:
            return None
        last = seqs.cu_seqlens[1:].long() - 1
        return self.network.head(hidden[last[torch.tensor(sampled, dtype=torch.int64, device=device)]])


def _device(network: Transformer) -> torch.device:
    return next(network.parameters()).device


def _is_decoded(sequence: ScheduledSequence) -> bool:
    """Whether a step computes one token of a sequence that follows cached ones."""
    return Kind.of(sequence) is Kind.DECODE
