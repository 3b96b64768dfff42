"""What attention layers declare to keep for decoding, and what of them tensor parallelism divides."""

import pytest
import torch
from torch import nn

from reallm.errors import ConfigError
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens
from reallm.model.attention.kv_cache import CacheTensor, KVCache, keys_and_values
from reallm.model.config import ReaLModelConfig
from reallm.model.layers import Linear
from reallm.model.sharding import Shard, TPUnits
from reallm.model.transformer import Transformer
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import check_fits

CONFIG = ReaLModelConfig(
    n_layers=2, hidden_size=24, n_q_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=48, vocab_size=50,
    max_positions=64,
)  # fmt: skip


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


def model_of(attention):
    model = Transformer(CONFIG.replace(attention=f"{__name__}:{attention.__name__}"))
    model.init_weights(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return model.eval()


@torch.no_grad()
def without_cache(model, prompt, n):
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(model(torch.tensor(tokens), torch.tensor([0, len(tokens)]))[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("attention", [LatentAttention, RecurrentAttention, SilentAttention])
def test_decoding_with_what_a_layer_keeps_equals_the_forward_pass_over_all_tokens(attention):
    model, prompts = model_of(attention), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    expected = [without_cache(model, prompt, 6) for prompt in prompts]
    stop = expected[1][2]  # the one in the middle leaves the batch before the others
    found = generate_tokens(model, prompts, GenerationConfig(max_new_tokens=6, temperature=0, stop_token_ids=(stop,)))
    for completion, tokens in zip(found, expected, strict=True):
        n = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        assert completion.token_ids == tokens[:n]


def test_a_cache_has_the_tensors_that_the_layers_declare():
    cache = model_of(LatentAttention).new_cache(3, 20)
    assert {number: [tuple(each.shape) for each in kept] for number, kept in cache.blocks.items()} == {
        1: [(3, 20, 6)],
        2: [(3, 20, 6)],
    }
    (state,) = model_of(RecurrentAttention).new_cache(3, 20).blocks[1]
    assert (state.shape, state.dtype) == ((3, 6), torch.float64)
    assert [tuple(each.shape) for each in model_of(SilentAttention).new_cache(3, 20).blocks[2]] == [(3, 2, 20, 8)] * 2
    assert [tuple(each.shape) for each in Transformer(CONFIG).new_cache(3, 20).blocks[2]] == [(3, 2, 20, 8)] * 2


@pytest.mark.parametrize(("tp", "n_heads"), [(1, 2), (2, 1), (4, 1)])
def test_a_rank_keeps_its_own_heads_and_all_that_is_not_split(tp, n_heads):
    spec = (*keys_and_values(CONFIG), CacheTensor((6,)), CacheTensor((4, 12), per_token=False, shard=Shard(-1, 3)))
    cache = KVCache({1: spec}, 5, 20, tp=tp)
    assert [tuple(each.shape) for each in cache.blocks[1]] == [
        (5, n_heads, 20, 8),
        (5, n_heads, 20, 8),
        (5, 20, 6),
        (5, 4, 12 // tp),
    ]


def test_what_cannot_be_split_among_so_many_ranks_is_refused():
    with pytest.raises(ConfigError, match=r"tp=3 does not fit a cache of 2 units \[2, 8\]"):
        KVCache({1: keys_and_values(CONFIG)}, 5, 20, tp=3)


@pytest.mark.parametrize(
    ("attention", "tp", "line"),
    [
        (LatentAttention, 4, "tp=4 does not fit the model's 6 latent features; use tp=1 or 2 or 3 or 6"),
        (RecurrentAttention, 5, "tp=5 does not fit the model's 6 latent features; use tp=1 or 2 or 3 or 6"),
        (SilentAttention, 3, "tp=3 does not fit the model's 4 query heads; use tp=1 or 2 or 4"),
    ],
)
def test_a_layout_is_refused_by_the_units_that_the_layers_declare(attention, tp, line):
    with pytest.raises(ConfigError, match=line):
        check_fits(model_of(attention).config, Layout(tp=tp))


def test_a_layout_fits_layers_without_the_heads_of_the_configuration():
    check_fits(model_of(LatentAttention).config, Layout(tp=3))  # 48 inner features, 6 latent ones; no 4 heads
