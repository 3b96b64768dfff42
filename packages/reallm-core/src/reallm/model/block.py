"""One transformer block.

Shapes: T packed tokens, E hidden, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from reallm.model.attention import AttentionSpec, Step, attend
from reallm.model.config import ReaLModelConfig
from reallm.model.layers import Linear, RMSNorm, make_mlp, make_norm
from reallm.model.shard import Shard

LayerCache = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal self-attention with grouped KV heads, RoPE and optional q/k norm."""

    def __init__(self, config: ReaLModelConfig, window: int | None) -> None:
        super().__init__()
        size, dim, bias = config.hidden_size, config.head_dim, config.qkv_bias
        self.q = Linear(size, config.n_q_heads * dim, bias=bias, split="out", unit=dim)
        self.k = Linear(size, config.n_kv_heads * dim, bias=bias, split="out", unit=dim)
        self.v = Linear(size, config.n_kv_heads * dim, bias=bias, split="out", unit=dim)
        self.o = Linear(config.n_q_heads * dim, size, bias=config.o_bias, split="in", unit=dim)
        self.q_norm = _qk_norm(config, config.n_q_heads)
        self.k_norm = _qk_norm(config, config.n_kv_heads)
        self.head_dim = dim
        self.spec = AttentionSpec(
            scale=config.attn_scale or dim**-0.5,
            window=window,
            softcap=config.attn_softcap,
            dropout=config.attn_dropout,
        )
        self.inference_spec = AttentionSpec(self.spec.scale, window, self.spec.softcap)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None = None) -> Tensor:
        q = self.q_norm(self.q(x)).unflatten(-1, (-1, self.head_dim))
        k = self.k_norm(self.k(x)).unflatten(-1, (-1, self.head_dim))
        v = self.v(x).unflatten(-1, (-1, self.head_dim))
        spec = self.spec if self.training else self.inference_spec
        return self.o(attend(q, k, v, step, spec, cache).flatten(-2))


class HeadwiseRMSNorm(RMSNorm):
    """An RMS norm of each head by itself, with one weight [D] for all of them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(-1, (-1, self.weight.numel()))).flatten(-2)


def _qk_norm(config: ReaLModelConfig, n_heads: int) -> nn.Module:
    if config.qk_norm == "head":
        return HeadwiseRMSNorm(config.head_dim, config.norm_eps)
    if config.qk_norm == "whole":
        return RMSNorm(n_heads * config.head_dim, config.norm_eps, shard=Shard(0, config.head_dim))
    return nn.Identity()


class Residual(nn.Module):
    """What a branch adds to the stream: scaled, and in training with dropout."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier
        self.dropout = config.residual_dropout

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        if self.dropout:
            branch = F.dropout(branch, self.dropout, self.training)
        return x + branch if self.multiplier == 1.0 else x + branch * self.multiplier


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the stream."""

    def __init__(self, config: ReaLModelConfig, window: int | None) -> None:
        super().__init__()
        self.attn_norm = make_norm(config)
        self.attn = Attention(config, window)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.add = Residual(config)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None = None) -> Tensor:
        x = self.add(x, self.attn(self.attn_norm(x), step, cache))
        return self.add(x, self.mlp(self.mlp_norm(x)))


def call_block(block: nn.Module, x: Tensor, step: Step, cache: LayerCache | None) -> Tensor:
    """`block(x, step, cache)` as a function, which can be compiled once for all blocks."""
    return cast(Tensor, block(x, step, cache))
