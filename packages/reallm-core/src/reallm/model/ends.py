"""The layers at the ends of a network: embedding and head.

Shapes: T packed tokens, S sequences, E hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reallm.errors import PluginError
from reallm.model.config import ReaLModelConfig, is_custom_class
from reallm.model.layers import Linear, PositionEmbedding, TokenEmbedding, VocabBias, custom_layer, make_norm
from reallm.model.packed import PackedSequences


class Embedding(nn.Module):
    """Layer 0: tokens [T] -> [T, E]."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.tokens = TokenEmbedding(config)
        self.positions = PositionEmbedding(config) if config.learned_positions else None
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.multiplier = config.embedding_multiplier
        self.dropout = config.embedding_dropout

    def forward(self, tokens: Tensor, seqs: PackedSequences) -> Tensor:
        x = self.tokens(tokens)
        if self.multiplier != 1.0:
            # rounded to the dtype of the weights, as in transformers
            x = x * torch.tensor(self.multiplier, dtype=x.dtype)
        if self.positions is not None:
            x = x + self.positions(seqs)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Head(nn.Module):
    """Layer n+1: the final norm and, unless it is tied to the embedding, the output projection.

    The projection is a parameter that losses read, and not computed here.
    """

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.norm = make_norm(config) if config.final_norm else nn.Identity()
        self.out: nn.Module
        if config.is_critic:
            self.out = Linear(config.hidden_size, 1, split="row")
            self.out.shards = {"weight": None}  # one row; too small to split
        elif not config.head_is_tied:
            self.out = Linear(config.hidden_size, config.vocab_size, bias=config.head_bias, split="column")
        elif config.head_bias:
            self.out = VocabBias(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def make_embedding(config: ReaLModelConfig) -> nn.Module:
    """The embedding, of the kind that the configuration names.

    Raises:
        PluginError: a custom class has no table of tokens.
    """
    if not is_custom_class(config.embedding):
        return Embedding(config)
    layer = custom_layer(config.embedding, config)
    if not isinstance(getattr(layer, "tokens", None), TokenEmbedding):
        raise PluginError(
            f"{config.embedding} has no 'tokens', the table of embeddings; make it a TokenEmbedding of "
            "reallm.model.layers, as in reallm.model.ends.Embedding"
        )
    return layer


def make_head(config: ReaLModelConfig) -> nn.Module:
    """The head, of the kind that the configuration names.

    Raises:
        PluginError: a custom class lacks a parameter of the output projection, or has one that it may not have.
    """
    if not is_custom_class(config.head):
        return Head(config)
    layer = custom_layer(config.head, config)
    needed = {"out.weight": config.is_critic or not config.head_is_tied, "out.bias": config.head_has_bias}
    found = dict(layer.named_parameters())
    for name, is_needed in needed.items():
        if is_needed != (name in found):
            what = f"has no '{name}'" if is_needed else f"has '{name}', which this configuration does not use"
            raise PluginError(f"{config.head} {what}; let it derive from reallm.model.ends.Head, which makes 'out'")
    return layer
