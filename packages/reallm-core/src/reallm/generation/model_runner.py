"""`ModelRunner`: the forward pass of one step of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reallm.generation.kv_store import KVStore, pack_order
from reallm.generation.step import Step
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer


class ModelRunner:
    """Computes the logits of a step: all its sequences in one packed forward pass.

    Args:
        network: the whole network.
        store: where its blocks keep what they need of earlier tokens.
    """

    def __init__(self, network: Transformer, store: KVStore) -> None:
        self.network, self.store = network, store

    @torch.no_grad()
    def run(self, step: Step, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Compute the new tokens of all sequences of a step.

        Args:
            step: the step.
            token_ids: new tokens of each of its sequences.

        Returns:
            Logits [A, V] after the last tokens of the sequences with `samples`, in their order.
        """
        order = sorted(range(len(step.sequences)), key=lambda i: pack_order(step.sequences[i]))
        sequences = [step.sequences[i] for i in order]
        device = next(self.network.parameters()).device
        cache = self.store.prepare(replace(step, sequences=tuple(sequences)))
        seqs = PackedSequences.from_lengths(
            [sequence.n_new for sequence in sequences],
            cached_lengths=[sequence.n_cached for sequence in sequences],
            device=device,
        )
        tokens = torch.tensor([token for i in order for token in token_ids[i]], device=device)
        hidden = self.network.forward_hidden(tokens, seqs, cache)
        places = {i: place for place, i in enumerate(order)}
        sampled = [places[i] for i, sequence in enumerate(step.sequences) if sequence.samples]
        last = seqs.cu_seqlens[1:].long() - 1
        return self.network.head(hidden[last[torch.tensor(sampled, dtype=torch.int64, device=device)]])
