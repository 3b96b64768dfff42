"""One transformer block.

Shapes: T packed tokens, E hidden, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from reallm.model.attention import AttentionSpec, Step, attend
from reallm.model.config import ReaLModelConfig, is_own_class
from reallm.model.layers import GatedMLP, Linear, PlainMLP, make_norm, make_qk_norm, own_layer
from reallm.model.moe import MoEMLP

LayerCache = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal self-attention with grouped KV heads, RoPE and optional q/k norm."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, dim = config.hidden_size, config.head_dim
        self.q = Linear(size, config.n_q_heads * dim, bias=config.q_bias, split="out", unit=dim)
        self.k = Linear(size, config.n_kv_heads * dim, bias=config.k_bias, split="out", unit=dim)
        self.v = Linear(size, config.n_kv_heads * dim, bias=config.v_bias, split="out", unit=dim)
        self.o = Linear(config.n_q_heads * dim, size, bias=config.o_bias, split="in", unit=dim)
        self.q_norm = make_qk_norm(config, config.n_q_heads)
        self.k_norm = make_qk_norm(config, config.n_kv_heads)
        self.norms_whole = config.qk_norm == "whole"
        self.clip = config.qkv_clip
        self.head_dim = dim
        self.spec = AttentionSpec.of_block(config, block)
        self.inference_spec = self.spec.without_dropout()

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None = None) -> Tensor:
        q, k, v = self._heads(self.q(x), self.q_norm), self._heads(self.k(x), self.k_norm), self._heads(self.v(x))
        spec = self.spec if self.training else self.inference_spec
        return self.o(attend(q, k, v, step, spec, cache).flatten(-2))

    def _heads(self, projected: Tensor, norm: nn.Module | None = None) -> Tensor:
        """[T, H * D] -> [T, H, D], normed and clamped."""
        if norm is not None and self.norms_whole:
            projected = norm(projected)
        heads = projected.unflatten(-1, (-1, self.head_dim))
        if norm is not None and not self.norms_whole:
            heads = norm(heads)
        return heads if self.clip is None else heads.clamp(-self.clip, self.clip)


class Residual(nn.Module):
    """The stream after a branch was added to it: scaled, in training with dropout, and normed where that is the place.

    `norm` is that of the branch's output (`norm_placement` branch or sandwich) or of the sum (post).
    """

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier
        self.dropout = config.residual_dropout
        self.norms_branch = config.norm_placement in ("branch", "sandwich")

    def forward(self, x: Tensor, branch: Tensor, norm: nn.Module | None = None) -> Tensor:
        if norm is not None and self.norms_branch:
            branch = norm(branch)
        if self.dropout:
            branch = F.dropout(branch, self.dropout, self.training)
        x = x + branch if self.multiplier == 1.0 else x + branch * self.multiplier
        return x if norm is None or self.norms_branch else norm(x)


class Block(nn.Module):
    """Attention, then the MLP; each reads the stream and adds to it."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        before, after = config.norm_placement in ("pre", "sandwich"), config.norm_placement != "pre"
        self.attn_norm = make_norm(config) if before else nn.Identity()
        self.attn = make_attention(config, block)
        self.attn_post_norm = make_norm(config) if after else None
        self.mlp_norm = make_norm(config) if before else nn.Identity()
        self.mlp = make_mlp(config, block)
        self.mlp_post_norm = make_norm(config) if after else None
        self.add = Residual(config)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None = None) -> Tensor:
        x = self.add(x, self.attn(self.attn_norm(x), step, cache), self.attn_post_norm)
        return self.add(x, self.mlp(self.mlp_norm(x), step), self.mlp_post_norm)


class ParallelBlock(nn.Module):
    """Attention and MLP both read the stream as it enters, through norms of their own or a shared one."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        self.attn_norm = make_norm(config)
        self.attn = make_attention(config, block)
        self.mlp_norm = nn.Identity() if config.shared_norm else make_norm(config)
        self.mlp = make_mlp(config, block)
        self.add = Residual(config)
        self.shares_norm = config.shared_norm

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None = None) -> Tensor:
        normed = self.attn_norm(x)
        for_mlp = normed if self.shares_norm else self.mlp_norm(x)
        x = self.add(x, self.attn(normed, step, cache))
        return self.add(x, self.mlp(for_mlp, step))


def make_block(config: ReaLModelConfig, block: int) -> nn.Module:
    """A block, numbered from 0, as the configuration says."""
    if is_own_class(config.block):
        return own_layer(config.block, config, block)
    return ParallelBlock(config, block) if config.parallel_residual else Block(config, block)


def make_attention(config: ReaLModelConfig, block: int) -> nn.Module:
    """The attention of a block, numbered from 0."""
    return own_layer(config.attention, config, block) if is_own_class(config.attention) else Attention(config, block)


def make_mlp(config: ReaLModelConfig, block: int) -> nn.Module:
    """The MLP of a block, numbered from 0, or the experts in its place."""
    if block in config.expert_blocks:
        return MoEMLP(config)
    if is_own_class(config.mlp):
        return own_layer(config.mlp, config, block)
    kinds = {"gated": GatedMLP, "plain": PlainMLP}
    return kinds[config.mlp](config, block)


def call_block(block: nn.Module, x: Tensor, step: Step, cache: LayerCache | None) -> Tensor:
    """`block(x, step, cache)` as a function, which can be compiled once for all blocks."""
    return cast(Tensor, block(x, step, cache))
