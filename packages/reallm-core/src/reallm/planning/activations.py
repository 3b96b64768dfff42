"""The activations of a rank, traced for its part of each layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from reallm.model.config import GradientCheckpointing, ReaLModelConfig
from reallm.training.memory import (
    ActivationPeaks,
    activation_peaks,
    depends_on_lengths,
    logits_bytes,
)

TRACED = 1024
"""Tokens of a traced sequence where only their sum matters: few, since each chunk of logits takes time to trace."""


def rank_activations(
    config: ReaLModelConfig,
    tp: int,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Sequence[int],
    gradient_checkpointing: GradientCheckpointing | None,
) -> int | None:
    """Bytes of activations on one of `tp` ranks that split each layer; see `activation_peaks`.

    A pipeline's first stage holds those of as many micro-batches as there are stages, each of a part of the blocks: as
    many as one micro-batch has in all blocks.
    """
    peaks = rank_peaks(config, tp, dtype, device, lengths, gradient_checkpointing, sum(lengths))
    return None if peaks is None else max(peaks)


def rank_peaks(
    config: ReaLModelConfig,
    tp: int,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Sequence[int],
    gradient_checkpointing: GradientCheckpointing | None,
    n_scored: int,
) -> ActivationPeaks | None:
    """As `rank_activations`, by what is computed; see `activation_peaks`."""
    others = dtype, _traceable(device), lengths, gradient_checkpointing, n_scored
    peaks = activation_peaks(tp_shard(config, tp), *others)
    if peaks is None and tp > 1:  # a plugin's layers that do not come in any number of heads
        whole = activation_peaks(config, *others)
        return None if whole is None else ActivationPeaks(*(n // tp for n in whole))
    return peaks


@dataclass(frozen=True)
class ActivationTraces:
    """Activations of any number of sequences, from traces of one and two of them, and of one on split layers.

    What does not depend on tokens is divided by tensor parallelism; of the rest a part is, and inputs of split layers
    are not. Logits are counted apart: there is a chunk of them at a time, which is as large for any number of tokens
    that fill it.
    """

    config: ReaLModelConfig
    dtype: torch.dtype
    device: torch.device
    longest: int
    """Tokens of the longest sequence."""
    scored: float = 1.0
    """Share of the tokens that have logits or scores."""

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
        head, blocks = (self._part(part, n_tokens, tp, gradient_checkpointing) for part in (0, 1))
        return int(max(head + self._logits(n_tokens, tp, self.device), blocks))

    def _part(self, part: int, n_tokens: int, tp: int, gradient_checkpointing: GradientCheckpointing | None) -> float:
        """Bytes without logits, in one of the parts of `ActivationPeaks`."""
        constant, of_token = self._lines(gradient_checkpointing)[part]
        if tp > 1:
            undivided = self._undivided(gradient_checkpointing)[part]
            constant, of_token = constant / tp, undivided + (of_token - undivided) / tp
        return constant + of_token * n_tokens

    @lru_cache(maxsize=256)  # noqa: B019 - few models are planned
    def _lines(self, gradient_checkpointing: GradientCheckpointing | None) -> list[tuple[float, float]]:
        """Bytes that do not depend on tokens, and those of each token, on a rank that holds whole layers, by part."""
        one, two = (self._traced(n, 1, gradient_checkpointing) for n in (1, 2))
        return [(2 * a - b, (b - a) / self.length) for a, b in zip(one, two, strict=True)]

    @lru_cache(maxsize=256)  # noqa: B019 - few models are planned
    def _undivided(self, gradient_checkpointing: GradientCheckpointing | None) -> list[float]:
        """Bytes of each token that tensor parallelism does not divide, by part."""
        tp = next((tp for tp in range(2, self.config.n_q_heads + 1) if self.config.n_q_heads % tp == 0), 1)
        if tp == 1:
            return [0.0, 0.0]
        split, found = self._traced(1, tp, gradient_checkpointing), []
        for on_rank, (constant, of_token) in zip(split, self._lines(gradient_checkpointing), strict=True):
            of_rank = (on_rank - constant / tp) / self.length
            found.append(min(of_token, max(0.0, (tp * of_rank - of_token) / (tp - 1))))
        return found

    def _traced(
        self, n_sequences: int, tp: int, gradient_checkpointing: GradientCheckpointing | None
    ) -> ActivationPeaks:
        """The peaks of sequences, of which that of the head without logits."""
        n_tokens = n_sequences * self.length
        lengths, n_scored = [self.length] * n_sequences, self._scored(n_tokens)
        peaks = rank_peaks(self.config, tp, self.dtype, self.device, lengths, gradient_checkpointing, n_scored)
        if peaks is None:
            return ActivationPeaks(0, 0)
        return peaks._replace(head=peaks.head - self._logits(n_tokens, tp, _traceable(self.device)))

    def _scored(self, n_tokens: int) -> int:
        return math.ceil(self.scored * n_tokens)

    def _logits(self, n_tokens: int, tp: int, device: torch.device) -> int:
        shard = tp_shard(self.config, tp)
        return logits_bytes(shard, self._scored(n_tokens), self.dtype, device)


@lru_cache(maxsize=256)
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
