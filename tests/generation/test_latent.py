"""Latent attention: what decoding computes from latents is what a forward pass computes with keys and values."""

from __future__ import annotations

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.memory import bytes_per_token
from reallm.generation.request import Request
from reallm.model.config import Extra, RopeConfig
from reallm.model.lora_config import LoRAConfig
from reallm.model.packed import PackedSequences
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.planning.kept_tokens import kept_numbers, mean_head_width
from reallm.planning.rank_share import RankShare
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(
    hidden_size=24, n_q_heads=4, n_kv_heads=4, head_dim=10, v_head_dim=6, init_std=0.3, max_positions=1000,
    rope=RopeConfig(rotary_dim=4, interleaved=True), extra=Extra(q_rank=9, kv_rank=8),
    attention="reallm_hf_deepseek.layers:LatentAttention",
)  # fmt: skip
ADAPTED = CONFIG.replace(lora=LoRAConfig(2, 4.0, ("attn.kv_up", "attn.q_up", "attn.o")))
PROMPTS = [[3, 1, 4], list(range(40)), [7], [5] * 250]


def model_of(config=CONFIG, **kwargs):
    model = ReaLModel(config, dtype=torch.float64, seed=5, **kwargs)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora" in name:
                each.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def completions(model, n=2, **options):
    """The completions of all prompts, by prompt and sample."""
    found = {}
    with GenerationEngine(model.network.eval(), **options) as engine:
        for index, prompt in enumerate(PROMPTS):
            config = GenerationConfig(max_new_tokens=8 + 3 * index, temperature=0.9, seed=1, n=n)
            engine.add(Request(tuple(prompt), config, key=index))
        while engine.has_work:
            for event in engine.step():
                if completion := getattr(event, "completion", None):
                    found[event.request_id, event.sample] = completion
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(extra=Extra(q_rank=None, kv_rank=8)), ADAPTED])
def test_log_probabilities_are_those_of_the_expanded_forward_pass(config):
    model = model_of(config)
    for each in completions(model):
        tokens = torch.tensor([*each.prompt_ids, *each.token_ids])
        scored = model.token_logprobs(tokens, torch.tensor([0, len(tokens)]), 0.9)
        torch.testing.assert_close(torch.tensor(each.logprobs), scored[-len(each.logprobs) :].float())


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_tokens": 17},  # long prompts come in parts
        {"kv_cache_tokens": 512, "prefix_sharing": False},  # sequences are interrupted, and computed again
        {"max_batch_sequences": 1},
    ],
)
def test_sequences_are_the_same_in_whatever_company(options):
    model = model_of()
    expected = completions(model)
    found = completions(model, **options)
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, rel=1e-9)


@torch.no_grad()
def test_hidden_states_are_the_same_to_the_last_digits_of_float64():
    network, tokens = model_of().network.eval(), torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(0))
    whole = network.forward_hidden(tokens, PackedSequences.from_lengths([30]))
    cache, parts = network.new_cache(1, 30), []
    for part in tokens.split([11, 1, 1, 17]):
        seqs = PackedSequences.from_lengths([len(part)], cached_lengths=cache.lengths)
        parts.append(network.forward_hidden(part, seqs, cache))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-11, atol=1e-12)


def on_a_rank(rank):
    torch.set_num_threads(1)
    return [each.token_ids for each in model_of(mesh=Mesh.of("tp2")).generate(PROMPTS, max_new_tokens=8, temperature=0)]


def test_ranks_have_some_of_the_heads_and_the_whole_latent():
    expected = [each.token_ids for each in model_of().generate(PROMPTS, max_new_tokens=8, temperature=0)]
    assert on_ranks(2, on_a_rank) == [expected, expected]


def test_a_plan_counts_a_latent_and_a_key_of_each_token():
    assert bytes_per_token(model_of().network) == CONFIG.n_layers * (8 + 4) * 8
    assert kept_numbers(CONFIG, 1) == kept_numbers(CONFIG, 4) == CONFIG.n_layers * (8 + 4)
    assert mean_head_width(CONFIG) == 2 * (8 + 4)  # read as keys and as values
    assert RankShare(CONFIG, Layout.parse("tp4pp2"), 1).cache == 0.5
    heads = TINY.replace(n_q_heads=4, n_kv_heads=2, v_head_dim=6, head_dim=8)
    assert kept_numbers(heads, 1) == TINY.n_layers * 2 * (8 + 6)
    assert kept_numbers(heads, 2) == kept_numbers(heads, 4) == TINY.n_layers * (8 + 6)
    assert mean_head_width(heads) == 8 + 6


def test_values_may_have_another_size_than_keys():
    model = model_of(TINY.replace(head_dim=8, v_head_dim=6, init_std=0.3, max_positions=1000, sliding_window=9))
    for each in completions(model, n=1):
        tokens = torch.tensor([*each.prompt_ids, *each.token_ids])
        scored = model.token_logprobs(tokens, torch.tensor([0, len(tokens)]), 0.9)
        torch.testing.assert_close(torch.tensor(each.logprobs), scored[-len(each.logprobs) :].float())


def test_a_head_count_that_latents_do_not_have_is_refused():
    with pytest.raises(ConfigError, match="n_kv_heads=2 must be n_q_heads=4, since heads share a latent"):
        model_of(CONFIG.replace(n_kv_heads=2))
