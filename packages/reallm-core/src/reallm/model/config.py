"""`ReaLModelConfig`: the architecture of a decoder-only transformer. Imports no torch.

Every field is honoured by the network or refused here, by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from reallm.errors import ConfigError, did_you_mean

NormKind = Literal["rms", "layer"]
MLPKind = Literal["gated", "plain"]
QKNormKind = Literal["head", "whole"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]
GradientCheckpointing = Literal["none", "selective", "full"]
"""What a block computes again in the backward pass instead of keeping it; see `model.checkpointing`."""

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2")
"""Names of activations the network has; `hf.tables` maps transformers' names to them."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: its base and how it is stretched to longer contexts.

    Fields follow transformers' `rope_parameters`; those that a kind does not use must be left at None.
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float | None = None
    """linear, dynamic, llama3, yarn: how many times longer the context becomes."""
    original_max_positions: int | None = None
    """llama3, yarn: context length of pretraining. Elsewhere the model's `max_positions` counts."""
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool | None = None

    def __post_init__(self) -> None:
        _one_of("rope.kind", self.kind, get_args(RopeKind))
        _positive("rope.theta", self.theta)
        allowed = ROPE_FIELDS[self.kind]
        for item in dataclasses.fields(self)[2:]:
            value = getattr(self, item.name)
            if value is not None and item.name not in allowed:
                raise ConfigError(f"rope.{item.name}={value} has no meaning for rope.kind='{self.kind}'; leave it out")
        for name in ROPE_REQUIRED[self.kind]:
            if getattr(self, name) is None:
                raise ConfigError(f"rope.{name} is required for rope.kind='{self.kind}'")
        if self.factor is not None and self.factor < 1.0:
            raise ConfigError(f"rope.factor={self.factor} must be at least 1")


ROPE_FIELDS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "original_max_positions", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_positions",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "attention_factor",
            "truncate",
        }
    ),
}
ROPE_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


@dataclass(frozen=True)
class ReaLModelConfig:
    """Architecture of a decoder-only transformer; sizes in elements, probabilities in [0, 1).

    Raises:
        ConfigError: a value that is not allowed, naming the field, the value and what is allowed.
    """

    n_layers: int
    hidden_size: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    """Longest sequence of pretraining; longer ones run, but `dynamic` RoPE changes beyond it."""

    norm: NormKind = "rms"
    norm_eps: float = 1e-6
    mlp: MLPKind = "gated"
    activation: str = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    rope: RopeConfig = field(default_factory=RopeConfig)

    sliding_window: int | tuple[int | None, ...] | None = None
    """Each token sees itself and the `sliding_window - 1` before it; one number for all blocks, or one a block."""
    tied_embeddings: bool = False
    qk_norm: QKNormKind | None = None
    """RMS norm of queries and keys before RoPE: over each head, or over all heads together."""
    attn_scale: float | None = None
    """Factor on attention scores; None means `head_dim ** -0.5`."""
    attn_softcap: float | None = None
    """Scores become `cap * tanh(score / cap)` before masking."""
    logit_softcap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0

    embedding_dropout: float = 0.0
    attn_dropout: float = 0.0
    residual_dropout: float = 0.0

    init_std: float = 0.02
    """Standard deviation of freshly initialised weights."""
    is_critic: bool = False
    """The head gives one score per token instead of logits over the vocabulary."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "hidden_size", "n_q_heads", "n_kv_heads", "head_dim", "intermediate_size",
                     "vocab_size", "max_positions"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        if self.n_q_heads % self.n_kv_heads:
            raise ConfigError(f"n_q_heads={self.n_q_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        _one_of("norm", self.norm, get_args(NormKind))
        _one_of("mlp", self.mlp, get_args(MLPKind))
        _one_of("activation", self.activation, ACTIVATIONS)
        if self.qk_norm is not None:
            _one_of("qk_norm", self.qk_norm, get_args(QKNormKind))
        for name in ("norm_eps", "attn_scale", "attn_softcap", "logit_softcap", "init_std"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("embedding_dropout", "attn_dropout", "residual_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if isinstance(self.sliding_window, tuple) and len(self.sliding_window) != self.n_layers:
            raise ConfigError(
                f"sliding_window has {len(self.sliding_window)} entries for n_layers={self.n_layers}; give one a block"
            )
        for window in self.windows:
            if window is not None and window < 1:
                raise ConfigError(f"sliding_window={window} must be at least 1")
        if self.is_critic and self.logit_softcap is not None:
            raise ConfigError("logit_softcap has no meaning for a critic; leave it out")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each block."""
        if isinstance(self.sliding_window, tuple):
            return self.sliding_window
        return (self.sliding_window,) * self.n_layers

    @property
    def head_is_tied(self) -> bool:
        """Whether the output head reuses the token embedding; a critic's scalar head never does."""
        return self.tied_embeddings and not self.is_critic

    def replace(self, **changes: Any) -> ReaLModelConfig:
        """A copy with some fields changed, validated again; an unknown field names the nearest."""
        names = [item.name for item in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise ConfigError(f"ReaLModelConfig has no field '{name}'{did_you_mean(name, names)}")
        return dataclasses.replace(self, **changes)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name}={value!r} must be greater than 0")
