"""Gated short convolution (LFM2, Liquid AI, 2025).

Shapes: T packed tokens, E hidden.
"""

from __future__ import annotations

from torch import Tensor

from reallm.model.attention.kv_cache import LayerCache
from reallm.model.attention.states import read_states, write_states
from reallm.model.causal_conv import CausalConv
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Linear, Projections
from reallm.model.sharding import TPUnits


class ShortConv(Projections):
    """`out(c(h) * conv(b(h) * x(h)))`, in place of attention; keeps the last inputs of the convolution."""

    projections = "b", "c", "x"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, bias = config.hidden_size, config.extra.conv_bias
        self.b, self.c, self.x = (Linear(size, size, bias=bias, split="column") for _ in self.projections)
        self.conv = CausalConv(size, config.extra.conv_size, bias=bias)
        self.out = Linear(size, size, bias=bias, split="row")
        self.cache_spec = (self.conv.cache_tensor,)
        self.tp_units = (TPUnits(size, "channels"),)

    def forward(self, hidden: Tensor, context: ForwardContext, cache: LayerCache | None = None) -> Tensor:
        """The convolution of `hidden` [T, E], each token with those before it in its sequence."""
        b, c, x = self.project(hidden)
        states = read_states(cache, self.cache_spec, context.seqs)
        y, after = self.conv(b * x, context.seqs, None if states is None else states[0])
        write_states(cache, self.cache_spec, after)
        return self.out(c * y)
