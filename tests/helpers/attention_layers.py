"""Attention layers that keep something else than keys and values, or declare nothing."""

from __future__ import annotations

import torch
from torch import nn

from reallm.model.attention.kv_cache import CacheTensor
from reallm.model.layers import Linear
from reallm.model.sharding import TPUnits
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(hidden_size=24)


class LatentAttention(nn.Module):
    """Keeps 6 numbers of each token; each token sees the mean of those so far."""

    def __init__(self, config, block):
        super().__init__()
        self.down = Linear(config.hidden_size, 6, split="column")
        self.up = Linear(6, config.hidden_size, split="row")
        self.cache_spec = (CacheTensor((6,)),)
        self.tp_units = (TPUnits(6, "latent features"),)

    def forward(self, x, context, cache=None):
        means = []
        for row, (seen, past) in enumerate(self.of_sequences(x, context)):
            if cache is not None:
                cache[0][row, past : past + len(seen)] = seen
                seen = cache[0][row, : past + len(seen)]
            means.append((seen.cumsum(0) / torch.arange(1, len(seen) + 1)[:, None])[past:])
        return self.up(torch.cat(means))

    def of_sequences(self, x, context):
        return zip(self.down(x).split(list(context.seqs.lengths)), context.seqs.cached_lengths, strict=True)


class RecurrentAttention(LatentAttention):
    """Keeps 6 numbers of each sequence, in float64, whatever its length."""

    def __init__(self, config, block):
        super().__init__(config, block)
        self.cache_spec = (CacheTensor((6,), per_token=False, dtype=torch.float64),)

    def forward(self, x, context, cache=None):
        states = []
        for row, (new, past) in enumerate(self.of_sequences(x, context)):
            state = cache[0][row] if cache is not None and past else torch.zeros(6, dtype=torch.float64)
            for value in new:
                state = 0.5 * state + value
                states.append(state)
            if cache is not None:
                cache[0][row] = state
        return self.up(torch.stack(states).to(x.dtype))


class SilentAttention(nn.Module):
    """Declares nothing, as classes written before there was anything to declare."""

    def __init__(self, config, block):
        super().__init__()

    def forward(self, x, context, cache=None):
        return x if cache is None else x + 0 * cache[0].sum()


class StatelessAttention(nn.Module):
    """Keeps nothing: each token sees itself alone."""

    def __init__(self, config, block):
        super().__init__()
        self.proj = Linear(config.hidden_size, config.hidden_size, split="column")
        self.cache_spec = ()

    def forward(self, x, context, cache=None):
        return self.proj(x)


def model_of(attention: type[nn.Module]) -> Transformer:
    """A model with these attention layers and random weights, in evaluation mode."""
    model = Transformer(CONFIG.replace(attention=f"{__name__}:{attention.__name__}"))
    model.init_weights(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return model.eval()
