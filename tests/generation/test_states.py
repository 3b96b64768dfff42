"""States of sequences: whatever shares a step, generating gives what a forward pass over all tokens gives."""

from __future__ import annotations

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.memory import bytes_per_sequence, bytes_per_token
from reallm.generation.request import Request
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.planning.kept_tokens import state_bytes
from reallm.planning.rank_share import RankShare
from reallm.training.memory import kv_cache_bytes
from tests.helpers.ranks import on_ranks
from tests.helpers.state_layers import CONFIG, CONV, N_CHANNELS, with_random_biases

PROMPTS = [[3, 1, 4], list(range(40)), [7], [5] * 250]


def model_of(config=CONFIG, dtype=torch.float64, **kwargs):
    model = ReaLModel(config, dtype=dtype, seed=5, **kwargs)
    if kwargs.get("mesh") is None:
        with_random_biases(model.network)
    return model


def run(engine, prompts, n=1, max_new_tokens=8):
    """The completions of prompts that come together, by prompt and sample."""
    found = {}
    first = None
    for index, prompt in enumerate(prompts):
        config = GenerationConfig(max_new_tokens=max_new_tokens + 3 * index, temperature=0.9, seed=1, n=n)
        number = engine.add(Request(tuple(prompt), config, key=index))
        first = number if first is None else first
    while engine.has_work:
        for event in engine.step():
            if completion := getattr(event, "completion", None):
                found[event.request_id - first, event.sample] = completion
    return [found[key] for key in sorted(found)]


def assert_scored_alike(model, completions, **options):
    for each in completions:
        tokens = torch.tensor([*each.prompt_ids, *each.token_ids])
        scored = model.token_logprobs(tokens, torch.tensor([0, len(tokens)]), 0.9, **options)
        found, expected = torch.tensor(each.logprobs), scored[-len(each.logprobs) :].float()
        if options:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(attention=CONV)], ids=["mixed", "convolutions"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 17},  # long prompts come in parts, beside sequences that decode
        {"kv_cache_tokens": 1024},  # sequences are interrupted, and computed again
        {"max_batch_sequences": 2},  # samples wait, until the state of their prompt is gone
    ],
    ids=str,
)
def test_log_probabilities_are_those_of_the_whole_sequence(config, options):
    model = model_of(config)
    with GenerationEngine(model.network.eval(), **options) as engine:
        assert_scored_alike(model, run(engine, PROMPTS, n=3))


def test_conversations_go_on_from_their_last_state():
    model, texts, n_computed = model_of(), [*PROMPTS[:2], PROMPTS[3]], []
    with GenerationEngine(model.network.eval()) as engine:
        prepare = engine._store.prepare
        engine._store.prepare = lambda step, **options: (
            n_computed.append(sum(each.n_new for each in step.sequences)),
            prepare(step, **options),
        )[1]
        for _ in range(3):
            n_computed.clear()
            completions = run(engine, texts)
            assert_scored_alike(model, completions)
            texts = [[*each.prompt_ids, *each.token_ids, 9, 9, 9] for each in completions]
    # of the longest, only what follows its last turn is computed: the token sampled last and three new ones
    others = [len(text) - 3 - 8 - 3 * i for i, text in enumerate(texts[:2])]
    assert n_computed[0] == sum(others) + 4


def test_a_prompt_that_leaves_a_conversation_does_not_get_its_state():
    model, prompt = model_of(), [5] * 300
    with GenerationEngine(model.network.eval()) as engine:
        [first] = run(engine, [prompt])
        assert_scored_alike(model, run(engine, [prompt, [*prompt, first.token_ids[0], 1, 2], prompt[:280]]))


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(attention=CONV)], ids=["mixed", "convolutions"])
def test_exact_mode_has_the_same_bits(config):
    model = model_of(config, torch.float32)
    with model.generation_engine(exact=True, max_batch_tokens=17) as engine:
        assert_scored_alike(model, run(engine, PROMPTS, n=2), exact=True)


def on_a_rank(rank, layout):
    torch.set_num_threads(1)
    completions = model_of(mesh=Mesh.of(layout)).generate(PROMPTS, max_new_tokens=8, temperature=0)
    return [each.token_ids for each in completions]


@pytest.mark.parametrize("layout", ["tp2", "pp3", "dp2"])
def test_ranks_keep_the_states_of_their_channels_blocks_and_sequences(layout):
    model = ReaLModel(CONFIG, dtype=torch.float64, seed=5)
    expected = [each.token_ids for each in model.generate(PROMPTS, max_new_tokens=8, temperature=0)]
    n = Layout.parse(layout).size
    assert on_ranks(n, on_a_rank, layout) == [expected] * n


def test_a_plan_counts_states_of_sequences():
    heads = CONFIG.n_q_heads * CONFIG.head_dim
    network = model_of().network
    assert bytes_per_sequence(network) == 2 * (N_CHANNELS + heads) * 8
    assert state_bytes(CONFIG, 2, torch.float32) == (N_CHANNELS + heads) * 4
    of_tokens = bytes_per_token(network) * 100
    assert kv_cache_bytes(CONFIG, torch.float64, 100, 3) == of_tokens + 3 * bytes_per_sequence(network)
    assert RankShare(CONFIG.replace(attention=CONV), Layout.parse("tp4pp3"), 1).cache == pytest.approx(1 / 12)
