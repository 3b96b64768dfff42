"""Transformer blocks: attention and MLP with residual connections.

Shapes: T packed tokens, E hidden, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from reallm.model.attention.gqa import Attention
from reallm.model.attention.kv_cache import LayerCache
from reallm.model.config import ReaLModelConfig, is_custom_class
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import GatedMLP, PlainMLP, custom_layer, make_norm
from reallm.model.moe.layer import MoEMLP


class ResidualAdd(nn.Module):
    """Residual connection: `x + multiplier * dropout(branch)`, with an optional norm of the branch or of the sum.

    `norm` is applied to the branch (`norm_placement` branch or sandwich) or to the sum (post).
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
    """Attention, then the MLP, each with a residual connection."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        before, after = config.norm_placement in ("pre", "sandwich"), config.norm_placement != "pre"
        self.attn_norm = make_norm(config) if before else nn.Identity()
        self.attn = make_attention(config, block)
        self.attn_post_norm = make_norm(config) if after else None
        self.mlp_norm = make_norm(config) if before else nn.Identity()
        self.mlp = make_mlp(config, block)
        self.mlp_post_norm = make_norm(config) if after else None
        self.add = ResidualAdd(config)

    def forward(self, x: Tensor, context: ForwardContext, cache: LayerCache | None = None) -> Tensor:
        x = self.add(x, self.attn(self.attn_norm(x), context, cache), self.attn_post_norm)
        return self.add(x, self.mlp(self.mlp_norm(x), context), self.mlp_post_norm)


class ParallelBlock(nn.Module):
    """Attention and MLP in parallel: both read the block's input, through separate norms or a shared one."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        self.attn_norm = make_norm(config)
        self.attn = make_attention(config, block)
        self.mlp_norm = nn.Identity() if config.shared_norm else make_norm(config)
        self.mlp = make_mlp(config, block)
        self.add = ResidualAdd(config)
        self.shares_norm = config.shared_norm

    def forward(self, x: Tensor, context: ForwardContext, cache: LayerCache | None = None) -> Tensor:
        normed = self.attn_norm(x)
        for_mlp = normed if self.shares_norm else self.mlp_norm(x)
        x = self.add(x, self.attn(normed, context, cache))
        return self.add(x, self.mlp(for_mlp, context))


def make_block(config: ReaLModelConfig, block: int) -> nn.Module:
    """A block, numbered from 0, of the kind that the configuration names."""
    if is_custom_class(config.block):
        return custom_layer(config.block, config, block)
    return ParallelBlock(config, block) if config.parallel_residual else Block(config, block)


def make_attention(config: ReaLModelConfig, block: int) -> nn.Module:
    """The attention layer of a block, numbered from 0, or what it has in its place."""
    kind = config.attentions[block]
    return custom_layer(kind, config, block) if is_custom_class(kind) else Attention(config, block)


def make_mlp(config: ReaLModelConfig, block: int) -> nn.Module:
    """The MLP of a block, numbered from 0, or the mixture of experts in its place."""
    if block in config.expert_blocks:
        return MoEMLP(config, block)
    if is_custom_class(config.mlp):
        return custom_layer(config.mlp, config, block)
    kinds = {"gated": GatedMLP, "plain": PlainMLP}
    return kinds[config.mlp](config, block)


def call_block(block: nn.Module, x: Tensor, context: ForwardContext, cache: LayerCache | None) -> Tensor:
    """`block(x, context, cache)` as a function, which can be compiled once for all blocks."""
    return cast(Tensor, block(x, context, cache))
