"""Layers with a state of each sequence, alone and beside keys and values, and networks of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reallm.model.attention.functional import attend
from reallm.model.attention.gqa import Attention
from reallm.model.attention.states import read_states, write_states
from reallm.model.causal_conv import CausalConv
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Linear
from reallm.model.sharding import TPUnits
from tests.helpers.tiny_config import TINY

N_CHANNELS = 12
N_TAPS = 3


class ConvMixer(nn.Module):
    """A causal convolution between two projections; keeps the last inputs of each sequence."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        self.inner = Linear(config.hidden_size, N_CHANNELS, split="column")
        self.conv = CausalConv(N_CHANNELS, N_TAPS, bias=True)
        self.out = Linear(N_CHANNELS, config.hidden_size, split="row")
        self.cache_spec = (self.conv.cache_tensor,)
        self.tp_units = (TPUnits(N_CHANNELS, "channels"),)

    def forward(self, x: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        before = read_states(cache, self.cache_spec, context.seqs)
        y, after = self.conv(self.inner(x), context.seqs, None if before is None else before[0])
        write_states(cache, self.cache_spec, after)
        return self.out(y)


class ConvolvedQueries(Attention):
    """Attention whose queries depend on those of the last tokens: keys, values and a state in one block."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.conv = CausalConv(config.n_q_heads * config.head_dim, N_TAPS)
        self.cache_spec = (*self.cache_spec, self.conv.cache_tensor)

    def forward(self, x: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        before = read_states(cache, self.cache_spec, context.seqs)
        q, after = self.conv(self.q(x), context.seqs, None if before is None else before[0])
        write_states(cache, self.cache_spec, after)
        q, k, v = self.heads(q), self.heads(self.k(x)), self.value_heads(self.v(x))
        return self.o(attend(q, k, v, context, self.spec, cache).flatten(-2))


class WideState(ConvMixer):
    """Keeps much more of a sequence than it needs."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.conv = CausalConv(N_CHANNELS, 1 + 1000)
        self.cache_spec = (self.conv.cache_tensor,)


CONV, MIXED = f"{__name__}:ConvMixer", f"{__name__}:ConvolvedQueries"
CONFIG = TINY.replace(
    n_layers=3, attention=(CONV, "standard", MIXED), init_std=0.3, max_positions=1000, sliding_window=(None, 9, None)
)
"""A convolution, attention, and both in one."""


@torch.no_grad()
def with_random_biases(network: nn.Module) -> None:
    """Give biases and scales values that a mistake would show."""
    for name, each in network.named_parameters():
        if each.dim() == 1:
            each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name))).to(each) / 3)
