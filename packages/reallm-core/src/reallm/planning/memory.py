"""`ModelMemory`: the bytes of a role's model on a rank, by what they are for, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from reallm.generation.memory import SHARE_OF_MEMORY
from reallm.generation.prepacking import prepacked_parameters
from reallm.generation.sampling import CHUNK_BYTES
from reallm.generation.scheduler import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS
from reallm.model.config import GradientCheckpointing, ReaLModelConfig
from reallm.model.parameters import meta_model, n_parameters
from reallm.model.products.linear import uses_onednn
from reallm.parallel.layout import Layout
from reallm.planning.activations import ActivationTraces
from reallm.planning.cache_tokens import cache_tokens
from reallm.planning.cost_settings import RoleSettings
from reallm.planning.costs import MemoryItems
from reallm.planning.kept_tokens import state_bytes
from reallm.planning.machine import Machine
from reallm.planning.rank_share import RankShare
from reallm.planning.sequences import Sequences
from reallm.specs import CallKind
from reallm.training.memory import FRAGMENTATION, kv_cache_bytes, state_per_parameter


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of the model of one role, on the fullest rank of any layout."""

    config: ReaLModelConfig
    settings: RoleSettings
    machine: Machine
    sequences: Sequences
    zero: int = 1
    sequence_parallel: bool = False

    def items(self, kind: CallKind, layout: Layout, max_tokens: int) -> MemoryItems:
        """Bytes on the fullest rank of a layout while a call of some kind is computed.

        Args:
            kind: the kind of the call.
            layout: its layout.
            max_tokens: most tokens of a micro-batch.
        """
        share, size = RankShare(self.config, layout, self.zero), self.settings.dtype.itemsize
        parameters = share.held * size
        other = {}
        if kind == "train_step":
            optimizer = int(share.held_trained * self._moment_bytes)
            gradients = share.gradients * max(4, size)
            n_tokens = sum(self.sequences.training(layout.dp, layout.pp, max_tokens).longest)
            activations = self._activations(n_tokens, layout, self.settings.gradient_checkpointing)
            other["gathered parameters"] = share.while_trained * size - parameters
            if size < 4:  # before they are added to those of the masters
                other["gradients of a micro-batch"] = share.gradients * size
            items = MemoryItems(parameters, gradients, optimizer, activations, other=other)
        elif kind == "generate":
            other["gathered parameters"] = share.while_called * size - parameters
            if self._prepacks and not layout.fsdp:
                other["prepacked weights"] = int(share.gathered * _prepacked_share(self.config) * size)
            other["logits"] = self._sampled_logits(layout)
            activations, kv_cache = self._generating(share)
            items = MemoryItems(parameters, activations=activations, kv_cache=kv_cache, other=other)
        else:
            other["gathered parameters"] = share.while_called * size - parameters
            n_tokens = sum(self.sequences.inference(layout.dp, layout.pp, max_tokens).longest)
            activations = self._activations(n_tokens, layout, None)
            items = MemoryItems(parameters, activations=activations, other=other)
        if self.machine.device == "cpu":
            come_and_go = items.gradients + items.activations + items.kv_cache
            other["allocator"] = int(FRAGMENTATION * come_and_go)
        return items

    def most_decoded(self, layout: Layout) -> int:
        """Sequences that a rank generates at the same time: as many as there is room for."""
        share, workload = RankShare(self.config, layout, self.zero), self.sequences.workload
        n_tokens = workload.prompts.mean / workload.n_answers + workload.answers.mean
        each = self._cache_bytes(share) * n_tokens + self._state_bytes(layout)
        return max(1, min(MAX_BATCH_SEQUENCES, int(self._cache_limit(share) / max(1.0, each))))

    def _most_tokens(self, layout: Layout) -> int:
        """Tokens of all prompts of a rank, or those of a token of each of its answers."""
        workload = self.sequences.workload
        n_prompts = math.ceil(workload.n_prompts / layout.dp)
        return max(n_prompts * workload.prompts.longest, math.ceil(workload.n_sequences / layout.dp))

    def _n_at_a_time(self, layout: Layout) -> int:
        """Most sequences that a rank generates at the same time."""
        return min(math.ceil(self.sequences.workload.n_sequences / layout.dp), MAX_BATCH_SEQUENCES)

    def _generating(self, share: RankShare) -> tuple[int, int]:
        """Activations, and keys and values, when they take the most together.

        If all answers begin together, prompts are computed while the cache is small.
        """
        layout, workload = share.layout, self.sequences.workload
        n_tokens = min(MAX_BATCH_TOKENS, self._most_tokens(layout))
        activations = self._activations(n_tokens, layout, None, has_logits=False)
        n = self._n_at_a_time(layout)
        held = cache_tokens(workload, n, in_rows=self.machine.device == "cpu")
        tokens, states = self._cache_bytes(share), self._state_bytes(layout)
        at_start = held.prompts * tokens + math.ceil(n / workload.n_answers) * states
        at_end = held.most * tokens + n * states
        prompts, most = (min(int(each), self._cache_limit(share)) for each in (at_start, at_end))
        if n < workload.n_sequences / layout.dp:
            return activations, most
        return (activations, prompts) if activations + prompts > most else (0, most)

    def _cache_limit(self, share: RankShare) -> int:
        """Bytes that keys and values may take beside the parameters."""
        kept = share.gathered * self.settings.dtype.itemsize
        return int(SHARE_OF_MEMORY * max(0, self.machine.memory - kept))

    def _cache_bytes(self, share: RankShare) -> float:
        """Bytes of keys and values of a token on a rank."""
        return _cache_bytes(self.config, self.settings.dtype) * share.cache

    def _state_bytes(self, layout: Layout) -> float:
        """Bytes of the states of a sequence on a rank."""
        return state_bytes(self.config, layout.tp, self.settings.dtype) / layout.pp

    @property
    def _prepacks(self) -> bool:
        """Whether weights are copied for decoding, as oneDNN does on a CPU."""
        if self.machine.device != "cpu":
            return False
        weight = torch.empty(1, 1, dtype=self.settings.dtype)
        return uses_onednn(weight, weight)

    @property
    def _moment_bytes(self) -> float:
        """Bytes of moments and masters for each parameter."""
        size = self.settings.dtype.itemsize
        moments = state_per_parameter(self.config, self.settings.optimizer)
        return moments * max(4, size) + (4 if size < 4 else 0)

    def _sampled_logits(self, layout: Layout) -> int:
        """Logits of the last tokens of the sequences that a rank generates at the same time, and their softmax, of a
        chunk at a time."""
        n_sequences, device = self._n_at_a_time(layout), self.machine.device
        n_bytes = n_sequences * self.config.vocab_size * self.settings.dtype.itemsize
        return n_bytes + min(4 * n_sequences * self.config.vocab_size, CHUNK_BYTES[device])

    def _activations(
        self,
        n_tokens: int,
        layout: Layout,
        gradient_checkpointing: GradientCheckpointing | None,
        *,
        has_logits: bool = True,
    ) -> int:
        """Activations of a micro-batch; with sequence parallelism in training all of them are divided."""
        divides_all = self.sequence_parallel and gradient_checkpointing is not None
        traces = self._traces if has_logits else self._traces_without_logits
        if divides_all:
            return traces.n_bytes(n_tokens, 1, gradient_checkpointing) // layout.tp
        return traces.n_bytes(n_tokens, layout.tp, gradient_checkpointing)

    @cached_property
    def _traces(self) -> ActivationTraces:
        return self._traces_of(self.config)

    @cached_property
    def _traces_without_logits(self) -> ActivationTraces:
        return self._traces_of(self.config.replace(is_critic=True))

    def _traces_of(self, config: ReaLModelConfig) -> ActivationTraces:
        device, longest = torch.device(self.machine.device), self.sequences.longest
        return ActivationTraces(config, self.settings.dtype, device, longest, self.sequences.share_of_answers or 1.0)


@lru_cache(maxsize=64)
def _cache_bytes(config: ReaLModelConfig, dtype: torch.dtype) -> int:
    return kv_cache_bytes(config, dtype, 1, 0)


@lru_cache(maxsize=64)
def _prepacked_share(config: ReaLModelConfig) -> float:
    """The share of the parameters that are copied for decoding."""
    return sum(weight.numel() for weight in prepacked_parameters(meta_model(config))) / n_parameters(config)
