"""Grouped-query attention: projections, q/k norms and clipping around the packed computation.

Shapes: T packed tokens, H query heads, K KV heads, D head dim, W value dim, E hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm.model.attention.functional import AttentionSpec, attend
from reallm.model.attention.kv_cache import LayerCache, keys_and_values
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Activation, Linear, PerHead, Projections, make_qk_norm
from reallm.model.sharding import Shard, Shards, TPUnits


def attention_heads(config: ReaLModelConfig) -> tuple[TPUnits, ...]:
    """Query and KV heads, as for an attention layer that declares no `cache_spec`."""
    return (
        TPUnits(config.n_q_heads, "query heads"),
        TPUnits(config.n_kv_heads, "KV heads", may_be_replicated=True),
    )


class Attention(Projections):
    """Causal self-attention with grouped KV heads, and optional RoPE, ALiBi, q/k norm, sinks and gate of the output."""

    projections = "q", "k", "v"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, dim, value_dim = config.hidden_size, config.head_dim, config.value_dim
        self.q = Linear(size, config.n_q_heads * dim, bias=config.q_bias, split="column", unit=dim)
        self.k = Linear(size, config.n_kv_heads * dim, bias=config.k_bias, split="column", unit=dim)
        self.v = Linear(size, config.n_kv_heads * value_dim, bias=config.v_bias, split="column", unit=value_dim)
        self.o = Linear(config.n_q_heads * value_dim, size, bias=config.o_bias, split="row", unit=value_dim)
        self.gate: Linear | None = None
        if config.attn_output_gate:
            self.gate = Linear(size, config.n_q_heads * value_dim, bias=config.q_bias, split="column", unit=value_dim)
            self.gate_act = Activation("sigmoid")
        self.q_norm = make_qk_norm(config, config.n_q_heads)
        self.k_norm = make_qk_norm(config, config.n_kv_heads)
        self.sinks = nn.Parameter(torch.empty(config.n_q_heads)) if config.attn_sinks else None
        self.shards: Shards = {} if self.sinks is None else {"sinks": Shard(0)}
        self.spec = AttentionSpec.of_block(config, block)
        self.inference_spec = self.spec.without_dropout()
        self.slopes = None if self.spec.slopes is None else PerHead(self.spec.slopes)
        self.init_std = config.init_std
        self.norms_whole = config.qk_norm == "whole"
        self.clip = config.qkv_clip
        self.head_dim, self.value_dim = dim, value_dim
        self.cache_spec = keys_and_values(config)
        self.tp_units = attention_heads(config)

    def forward(self, x: Tensor, context: ForwardContext, cache: LayerCache | None = None) -> Tensor:
        q, k, v = self.project(x)
        q, k, v = self.heads(q, self.q_norm), self.heads(k, self.k_norm), self.value_heads(v)
        spec = self.spec if self.training else self.inference_spec
        attended = attend(q, k, v, context, self.of_heads(spec), cache).flatten(-2)
        return self.o(attended if self.gate is None else self.gate_act(self.gate(x), attended))

    def of_heads(self, spec: AttentionSpec) -> AttentionSpec:
        """Settings with what belongs to each of the heads on this rank."""
        return spec.of_heads(sinks=self.sinks, slopes=None if self.slopes is None else self.slopes.values)

    def heads(self, projected: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Queries or keys [T, H * D] -> [T, H, D], normed and clamped."""
        if norm is not None and self.norms_whole:
            projected = norm(projected)
        heads = projected.unflatten(-1, (-1, self.head_dim))
        if norm is not None and not self.norms_whole:
            heads = norm(heads)
        return self._clamped(heads)

    def value_heads(self, projected: Tensor) -> Tensor:
        """Values [T, K * W] -> [T, K, W], clamped."""
        return self._clamped(projected.unflatten(-1, (-1, self.value_dim)))

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Initial value of the sinks, normal like that of matrices."""
        if self.sinks is None or name != "sinks":
            return None
        return torch.empty(self.sinks.shape).normal_(0.0, self.init_std, generator=generator)

    def _clamped(self, heads: Tensor) -> Tensor:
        return heads if self.clip is None else heads.clamp(-self.clip, self.clip)
