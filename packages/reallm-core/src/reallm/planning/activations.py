"""The activations of a rank, traced for its part of each layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from reallm.model.config import GradientCheckpointing, ReaLModelConfig
from reallm.training.memory import depends_on_lengths, traced_activations

TRACED = 1024
"""Tokens of a traced sequence where only their sum matters: more than a chunk of logits, of which there is one at a
time, and few chunks, since each takes time to trace."""


def rank_activations(
    config: ReaLModelConfig,
    tp: int,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Sequence[int],
    gradient_checkpointing: GradientCheckpointing | None,
) -> int | None:
    """Bytes of activations on one of `tp` ranks that split each layer; see `traced_activations`.

    A pipeline's first stage holds those of as many micro-batches as there are stages, each of a part of the blocks: as
    many as one micro-batch has in all blocks.
    """
    traced = traced_activations(tp_shard(config, tp), dtype, _traceable(device), lengths, gradient_checkpointing)
    if traced is None and tp > 1:  # a plugin's layers that do not come in any number of heads
        whole = traced_activations(config, dtype, _traceable(device), lengths, gradient_checkpointing)
        return None if whole is None else whole // tp
    return traced


@dataclass(frozen=True)
class ActivationTraces:
    """Activations of any number of sequences, from traces of one and two of them, and of one on split layers.

    What does not depend on tokens is divided by tensor parallelism; of the rest a part is, and inputs of split layers
    are not.
    """

    config: ReaLModelConfig
    dtype: torch.dtype
    device: torch.device
    longest: int
    """Tokens of the longest sequence."""

    @property
    def length(self) -> int:
        """Tokens of each traced sequence."""
        return self.longest if depends_on_lengths(self.config) else TRACED

    def n_bytes(self, n_tokens: int, tp: int, gradient_checkpointing: GradientCheckpointing | None) -> int:
        """Bytes on one of `tp` ranks that split each layer.

        Args:
            n_tokens: tokens of a micro-batch.
            tp: number of ranks.
            gradient_checkpointing: what is recomputed; None: the model is only called.
        """
        constant, of_token = self._line(gradient_checkpointing)
        if tp > 1:
            undivided = self._undivided(gradient_checkpointing)
            constant, of_token = constant / tp, undivided + (of_token - undivided) / tp
        return int(constant + of_token * n_tokens)

    @lru_cache(maxsize=256)  # noqa: B019 - few models are planned
    def _line(self, gradient_checkpointing: GradientCheckpointing | None) -> tuple[float, float]:
        """Bytes that do not depend on tokens, and those of each token, on a rank that holds whole layers."""
        one, two = (self._traced(n, 1, gradient_checkpointing) for n in (1, 2))
        return 2 * one - two, (two - one) / self.length

    @lru_cache(maxsize=256)  # noqa: B019 - few models are planned
    def _undivided(self, gradient_checkpointing: GradientCheckpointing | None) -> float:
        """Bytes of each token that tensor parallelism does not divide."""
        tp = next((tp for tp in range(2, self.config.n_q_heads + 1) if self.config.n_q_heads % tp == 0), 1)
        if tp == 1:
            return 0.0
        constant, of_token = self._line(gradient_checkpointing)
        on_rank = (self._traced(1, tp, gradient_checkpointing) - constant / tp) / self.length
        return min(of_token, max(0.0, (tp * on_rank - of_token) / (tp - 1)))

    def _traced(self, n_sequences: int, tp: int, gradient_checkpointing: GradientCheckpointing | None) -> int:
        lengths = [self.length] * n_sequences
        return rank_activations(self.config, tp, self.dtype, self.device, lengths, gradient_checkpointing) or 0


def tp_shard(config: ReaLModelConfig, tp: int) -> ReaLModelConfig:
    """A model as large as what one of `tp` ranks has of each layer."""
    moe = config.moe
    if moe is not None and moe.intermediate_size is not None:
        moe = dataclasses.replace(moe, intermediate_size=-(-moe.intermediate_size // tp))
    n_q_heads = config.n_q_heads // tp
    return config.replace(
        n_q_heads=n_q_heads,
        n_kv_heads=math.gcd(n_q_heads, max(1, config.n_kv_heads // tp)),
        intermediate_size=-(-config.intermediate_size // tp),
        vocab_size=-(-config.vocab_size // tp),
        moe=moe,
    )


def _traceable(device: torch.device) -> torch.device:
    """The device, or the meta device if this torch knows no such device."""
    return device if device.type == "cpu" or torch.cuda.is_available() else torch.device("meta")
