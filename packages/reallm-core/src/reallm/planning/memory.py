"""`ModelMemory`: the bytes of a role's model on a rank, by what they are for, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from reallm.config.optimizer import OptimizerConfig
from reallm.generation.memory import SHARE_OF_MEMORY
from reallm.generation.scheduler import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import n_parameters
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import fsdp_box, stage_parameters, tp_box
from reallm.planning.cost_settings import RoleSettings
from reallm.planning.costs import MemoryItems
from reallm.planning.machine import Machine
from reallm.planning.sequences import Sequences
from reallm.specs import CallKind
from reallm.training.memory import FRAGMENTATION, estimate, estimate_call, kv_cache_bytes, optimizer_state

TRACED_TOKENS = (1024, 2048)
"""Numbers of tokens for which activations are traced; from them follow those of any number."""


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of the model of one role, on the fullest rank of any layout."""

    config: ReaLModelConfig
    settings: RoleSettings
    machine: Machine
    sequences: Sequences
    zero: int = 1

    def items(self, kind: CallKind, layout: Layout, max_tokens: int) -> MemoryItems:
        """Bytes on the fullest rank of a layout while a call of some kind is computed.

        Args:
            kind: the kind of the call.
            layout: its layout.
            max_tokens: most tokens of a micro-batch.
        """
        held = self._numel(layout, sharded=True)
        gathered = self._numel(layout, sharded=False)
        size = self.settings.dtype.itemsize
        parameters, trains = held * size, kind == "train_step"
        optimizer = int(held * self._optimizer_bytes) if trains else 0
        gradients = (held if self.zero >= 2 else gathered) * max(4, size) if trains else 0
        kv_cache, activations = 0, 0
        if kind == "generate":
            activations = self._activations(MAX_BATCH_TOKENS, layout, trained=False)
            kv_cache = min(self._planned_cache(layout), self.cache_limit(parameters + optimizer))
        elif kind == "train_step":
            longest = sum(self.sequences.training(layout.dp, layout.pp, max_tokens).longest)
            activations = self._activations(longest, layout, trained=True)
        elif kind == "inference":
            longest = sum(self.sequences.inference(layout.dp, layout.pp, max_tokens).longest)
            activations = self._activations(longest, layout, trained=False)
        other = {}
        if layout.fsdp:
            other["gathered parameters"] = self._gathered(layout, kind) - parameters
        if self.machine.device == "cpu":
            alive = parameters + gradients + optimizer + activations + kv_cache + sum(other.values())
            other["allocator"] = int(FRAGMENTATION * alive)
        return MemoryItems(parameters, gradients, optimizer, activations, kv_cache, other)

    def cache_limit(self, kept: int) -> int:
        """Bytes that keys and values may take beside what the model keeps."""
        return int(SHARE_OF_MEMORY * max(0, self.machine.memory - kept))

    def most_decoded(self, layout: Layout) -> int:
        """Sequences that a rank generates at the same time: as many as there is room for."""
        kept = self._numel(layout, sharded=True) * self.settings.dtype.itemsize
        workload = self.sequences.workload
        each = self._cache_bytes(layout) * (workload.prompts.mean / workload.n_answers + workload.answers.mean)
        return max(1, min(MAX_BATCH_SEQUENCES * layout.pp, int(self.cache_limit(kept) / max(1.0, each))))

    def _planned_cache(self, layout: Layout) -> int:
        """Keys and values of as many of the longest answers as a rank may generate at the same time."""
        workload = self.sequences.workload
        n = min(math.ceil(workload.n_sequences / layout.dp), MAX_BATCH_SEQUENCES)
        n_tokens = n * (workload.prompts.longest / workload.n_answers + workload.answers.longest)
        return int(n_tokens * self._cache_bytes(layout))

    def _cache_bytes(self, layout: Layout) -> float:
        """Bytes of keys and values of a token on a rank; several ranks may hold the same heads."""
        heads = max(self.config.n_kv_heads, layout.tp) / self.config.n_kv_heads
        return _cache_bytes(self.config, self.settings.dtype) * heads / (layout.tp * layout.pp)

    def _numel(self, layout: Layout, *, sharded: bool) -> int:
        dp = layout.dp if sharded and layout.fsdp else 1
        return _most_parameters(self.config, layout.pp, layout.tp, dp)

    def _gathered(self, layout: Layout, kind: CallKind) -> int:
        """Bytes of parameters while they are computed with: all of a stage, or with ZeRO 3 those of two blocks."""
        whole, held = self._numel(layout, sharded=False), self._numel(layout, sharded=True)
        size = self.settings.dtype.itemsize
        if self.zero < 3 or kind == "generate":
            return whole * size
        n_units = self.config.n_layers / layout.pp + 1
        return min(whole, held + int(2 * whole / n_units)) * size

    @property
    def _optimizer_bytes(self) -> float:
        """Bytes of moments and masters for each parameter."""
        size = self.settings.dtype.itemsize
        moments = _state_per_parameter(self.config, self.settings.optimizer)
        return moments * max(4, size) + (4 if size < 4 else 0)

    def _activations(self, n_tokens: int, layout: Layout, *, trained: bool) -> int:
        """Activations of a micro-batch, and of those that a pipeline's first stage holds meanwhile."""
        checkpointing = self.settings.gradient_checkpointing if trained else None
        device = torch.device(self.machine.device)
        constant, slope = _activation_line(self.config, self.settings.dtype, device.type, checkpointing)
        return int((constant + slope * n_tokens) / layout.tp)


@lru_cache(maxsize=4096)
def _most_parameters(config: ReaLModelConfig, pp: int, tp: int, dp: int) -> int:
    """Parameters of the fullest stage, sharded over `dp` ranks."""
    return max(
        sum(fsdp_box(tp_box(info, tp, 0), dp, 0).numel for info in stage_parameters(config, pp, stage))
        for stage in range(pp)
    )


@lru_cache(maxsize=64)
def _state_per_parameter(config: ReaLModelConfig, optimizer: OptimizerConfig) -> float:
    """Elements that the optimizer keeps for each parameter, on average."""
    return optimizer_state(config, optimizer) / n_parameters(config)


@lru_cache(maxsize=64)
def _cache_bytes(config: ReaLModelConfig, dtype: torch.dtype) -> int:
    return kv_cache_bytes(config, dtype, 1)


@lru_cache(maxsize=64)
def _activation_line(
    config: ReaLModelConfig, dtype: torch.dtype, device: str, checkpointing: str | None
) -> tuple[float, float]:
    """Bytes of activations without tokens, and for each token; of a model that is trained, or only called."""
    found = []
    where = torch.device(device if torch.cuda.is_available() else "cpu")  # torch without CUDA cannot trace for it
    for n_tokens in TRACED_TOKENS:
        if checkpointing is None:
            one = estimate_call(config, dtype, where, [n_tokens])
        else:
            one = estimate(config, dtype, where, [n_tokens], gradient_checkpointing=checkpointing)
        found.append(one.activations or 0)
    slope = (found[1] - found[0]) / (TRACED_TOKENS[1] - TRACED_TOKENS[0])
    return found[0] - slope * TRACED_TOKENS[0], slope
