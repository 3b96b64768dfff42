"""What attention layers declare to keep for decoding, and what of them tensor parallelism divides."""

import pytest
import torch

from reallm.errors import ConfigError, PluginError
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens
from reallm.generation.row_store import RowStore
from reallm.model.attention.kv_cache import CacheTensor, KVCache, keys_and_values
from reallm.model.sharding import Shard
from reallm.model.transformer import Transformer
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import check_fits
from tests.helpers.attention_layers import CONFIG, LatentAttention, RecurrentAttention, SilentAttention, model_of


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


def test_states_are_declared_behind_what_is_kept_of_tokens():
    with pytest.raises(PluginError, match="a state before a tensor per token; put those with per_token=False last"):
        RowStore({1: (CacheTensor((4,), per_token=False), CacheTensor((6,)))})


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
