"""Generation: decoding with a cache equals the full forward pass, and sampling does what its settings say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from reallm.errors import ConfigError, DataError
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.generate import generate_tokens
from reallm.generation.partial_completion import PartialCompletion
from reallm.generation.request import FinishedEvent, Request
from reallm.model.config import RopeConfig
from reallm.model.packed import PackedSequences
from tests.generation.test_sampling import is_unlikely, reference
from tests.helpers.token_decoder import NumberDecoder
from tests.helpers.variants import BASE, VARIANTS, build, next_logits

PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_decoding_equals_the_full_forward_pass_at_every_token(variant):
    model = build(VARIANTS[variant])
    completions = generate_tokens(model, PROMPTS, GenerationConfig(max_new_tokens=12, temperature=0))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        text = list(prompt)
        assert len(completion.token_ids) == 12
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            logp = next_logits(model, text).log_softmax(-1)
            assert token == int(logp.argmax())
            assert logprob == pytest.approx(float(logp[token]), abs=1e-4)
            text.append(token)


@pytest.mark.parametrize("window", [None, 3])
def test_a_prompt_fed_in_pieces_equals_one_fed_whole(window):
    model = build(BASE.replace(sliding_window=window))
    tokens = torch.arange(20) % 50
    cache = model.new_cache(2, 20)
    pieces = []
    with torch.no_grad():
        for start, end in [(0, 5), (5, 6), (6, 13), (13, 20)]:  # the second sequence one token behind
            part = torch.cat([tokens[start:end], tokens[max(start - 1, 0) : end - 1]])
            lengths = [end - start, end - 1 - max(start - 1, 0)]
            seqs = PackedSequences.from_lengths(lengths, cached_lengths=cache.lengths)
            pieces.append(model.head(model.forward_hidden(part, seqs, cache)).split(lengths))
        whole = model(tokens, torch.tensor([0, 20]))
    torch.testing.assert_close(torch.cat([piece[0] for piece in pieces]), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([piece[1] for piece in pieces]), whole[:19], rtol=1e-4, atol=1e-4)


def test_what_a_prompt_draws_does_not_depend_on_its_neighbours():
    model = build(BASE)
    sampling = GenerationConfig(max_new_tokens=8, temperature=1.0, seed=5)
    together = generate_tokens(model, PROMPTS, sampling)
    others = generate_tokens(model, [PROMPTS[0], [7, 7], PROMPTS[2]], sampling)
    assert together[0].token_ids == others[0].token_ids
    assert together[2].token_ids == others[2].token_ids
    assert (
        generate_tokens(model, PROMPTS, GenerationConfig(max_new_tokens=8, temperature=1.0, seed=6))[0].token_ids
        != together[0].token_ids
    )


def completions_by_key(model, requests, *, at_first=None, **limits):
    """(key, sample) -> completion; requests after the first few come one by one, each before another step."""
    waiting, keys, found = list(requests), {}, {}
    with GenerationEngine(model, **limits) as engine:
        while waiting or engine.has_work:
            for request in waiting[: at_first if not keys else 1]:
                keys[engine.add(request)] = request.key
                waiting.remove(request)
            for event in engine.step():
                if isinstance(event, FinishedEvent):
                    found[keys[event.request_id], event.sample] = event.completion
    return found


def assert_equal_completions(found, expected):
    """The same tokens, and log-probabilities that are equal but for the last bits of float64."""
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        assert found[key].token_ids == wanted.token_ids, key
        assert found[key].logprobs == pytest.approx(wanted.logprobs, rel=1e-9)
        assert found[key].kept_mass == pytest.approx(wanted.kept_mass, rel=1e-9)


def test_a_request_gets_the_same_tokens_however_it_is_computed():
    model = build(BASE.replace(max_positions=2000)).double()
    generator = torch.Generator().manual_seed(0)
    settings = [
        {"temperature": 0},
        {"temperature": 1.0, "n": 3},
        {"temperature": 0.8, "top_k": 7, "n": 2},
        {"temperature": 1.5, "top_p": 0.8, "min_p": 0.02, "n": 2},
        {"temperature": 1.0, "min_new_tokens": 9, "stop_token_ids": (1, 2, 3, 4, 5, 6, 7)},
    ]
    # a prefix to share that is longer than a block, and one after which sequences outgrow rows of 256 tokens
    beginning, lengths = torch.randint(0, 50, (300,), generator=generator).tolist(), (0, 300, 235)

    def request(index):
        rest = torch.randint(0, 50, (index * 5 + 1,), generator=generator).tolist()
        config = GenerationConfig(12 + index, seed=index // 5, kept_mass=True, **settings[index % 5])
        return Request((*beginning[: lengths[index % 3]], *rest), config, key=f"prompt {index}")

    requests = [request(index) for index in range(10)]
    expected = completions_by_key(model, requests)
    assert len(expected) == sum(request.config.n for request in requests)
    for order, limits in [
        (requests, {"prefix_sharing": False}),
        (requests[::-1], {"max_batch_tokens": 17}),
        (requests[3:] + requests[:3], {"max_batch_sequences": 2}),
        (requests, {"at_first": 1}),
        (requests[::-1], {"at_first": 2, "max_batch_sequences": 5, "max_batch_tokens": 64}),
        (requests, {"kv_cache_tokens": 1024}),  # too few for all of them: some are interrupted and computed again
    ]:
        assert_equal_completions(completions_by_key(model, order, **limits), expected)


@pytest.mark.parametrize("n_calls", range(1, 37, 5))
def test_an_interrupt_between_two_tokens_changes_nothing(monkeypatch, n_calls):
    """The completions that had ended are not lost, and no sequence misses a token that its completion has."""
    model = build(BASE).double()
    requests = [
        Request((3, 1, index), GenerationConfig(max_new_tokens=2 + 3 * index, temperature=1.0, n=1 + index), key=index)
        for index in range(3)
    ]
    expected = completions_by_key(model, requests)
    append, n_left = PartialCompletion.append, n_calls

    def interrupted(completion, token):
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            raise KeyboardInterrupt
        return append(completion, token)

    monkeypatch.setattr(PartialCompletion, "append", interrupted)
    with GenerationEngine(model) as engine:
        for request in requests:
            engine.add(request)
        with pytest.raises(KeyboardInterrupt):
            engine.run()
        completions = engine.run()
        assert engine.run() == []
    for completion, wanted in zip(completions, expected.values(), strict=True):
        assert completion.token_ids == wanted.token_ids
        assert completion.logprobs == pytest.approx(wanted.logprobs, rel=1e-9)


def test_only_requests_are_taken():
    with GenerationEngine(build(BASE)) as engine, pytest.raises(ConfigError, match="request must be a Request, not a"):
        engine.add([1, 2])
    with pytest.raises(ConfigError, match=r"write default_stop_token_ids=\[3\]"):
        GenerationEngine(build(BASE), default_stop_token_ids=3)


def test_a_group_of_samples_can_be_several_requests():
    model = build(BASE).double()
    config = GenerationConfig(max_new_tokens=9, temperature=1.0, n=5, seed=2, kept_mass=True)
    whole = completions_by_key(model, [Request((3, 1), config, key="a")])
    parts = [
        Request((3, 1), dataclasses.replace(config, n=n), key="a", first_sample=first)
        for first, n in [(3, 2), (0, 1), (1, 2)]
    ]
    assert_equal_completions(completions_by_key(model, parts), whole)
    assert len({tuple(completion.token_ids) for completion in whole.values()}) == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "min_new_tokens": 2},
        {"top_k": 5, "top_p": 0.9, "temperature": 1.3, "min_p": 0.05, "min_new_tokens": 1},
    ],
    ids=str,
)
def test_samples_of_a_prompt_have_the_probabilities_of_the_model(fields):
    model, stop, n = build(BASE.replace(vocab_size=12)).double(), 4, 3000
    config = GenerationConfig(max_new_tokens=2, n=n, stop_token_ids=(stop,), seed=1, **fields)
    settings = {name: value for name, value in fields.items() if name != "min_new_tokens"}

    def next_token(text):
        is_banned = len(text) - 3 < config.min_new_tokens
        return reference(next_logits(model, text).tolist(), banned=(stop,) if is_banned else (), **settings)[0]

    counts = np.zeros((12, 13))  # the first token, and the second one or none
    for completion in generate_tokens(model, [[3, 1, 2]], config):
        first, *rest = completion.token_ids
        counts[first, rest[0] if rest else 12] += 1
    exact = np.zeros((12, 13))
    for first, probability in enumerate(next_token([3, 1, 2])):
        if first == stop:
            exact[first, 12] = probability
        elif probability:
            exact[first, :12] = probability * next_token([3, 1, 2, first])
    assert not counts[exact == 0].any()
    assert not is_unlikely(counts.ravel(), exact.ravel())


def test_a_sequence_ends_with_its_stop_token_and_the_others_go_on():
    model = build(BASE)
    free = generate_tokens(model, PROMPTS, GenerationConfig(max_new_tokens=10, temperature=0))
    stop = free[0].token_ids[3]
    stopped = generate_tokens(model, PROMPTS, GenerationConfig(max_new_tokens=10, stop_token_ids=(stop,)))
    for before, after in zip(free, stopped, strict=True):
        if stop in before.token_ids:
            end = before.token_ids.index(stop) + 1
            assert after.token_ids == before.token_ids[:end]
            assert after.finish_reason == "stop"
        else:
            assert after.token_ids == before.token_ids
            assert after.finish_reason == "length"


def test_stop_strings_are_looked_for_in_the_text():
    model = build(BASE)
    free = generate_tokens(model, PROMPTS[:1], GenerationConfig(max_new_tokens=6, temperature=0))[0]
    wanted = f"<{free.token_ids[2]}>"
    stopped = generate_tokens(
        model,
        PROMPTS[:1],
        GenerationConfig(max_new_tokens=6, temperature=0, stop=(wanted,)),
        decoder=NumberDecoder(),
    )[0]
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[2]) + 1]


def test_lengths_that_the_model_was_not_made_for_are_told_once(caplog):
    longest = 11
    model = build(BASE.replace(max_positions=longest))
    generate_tokens(model, [[1]], GenerationConfig(max_new_tokens=longest - 1))
    assert not caplog.messages
    for _ in range(2):
        generate_tokens(model, [[1], [1, 2]], GenerationConfig(max_new_tokens=longest - 1))
    [message] = caplog.messages
    assert f"may have more than the {longest} tokens that the model was made for" in message
    dynamic = build(BASE.replace(rope=RopeConfig("dynamic", factor=2.0)))
    generate_tokens(dynamic, [[1]], GenerationConfig(max_new_tokens=longest + 5))
    assert len(caplog.messages) == 1


def test_prompts_that_cannot_be_continued():
    model = build(BASE)
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        generate_tokens(model, [[1], []], GenerationConfig())
    with pytest.raises(DataError, match="prompt 0 has token 50, but the model has tokens 0 to 49; .*min_vocab_size="):
        generate_tokens(model, [[50]], GenerationConfig())
    assert generate_tokens(model, [], GenerationConfig()) == []


def test_a_prompt_that_may_outgrow_the_learned_positions_is_refused_before_anything_is_computed(monkeypatch):
    model = build(BASE.replace(learned_positions=True, max_positions=16))

    def forward_hidden(*args):
        raise AssertionError("something was computed")

    monkeypatch.setattr(model, "forward_hidden", forward_hidden)
    with pytest.raises(
        DataError,
        match="prompt 1 has 13 tokens, and with max_new_tokens=5 it may outgrow the 16 positions that the model has "
        "learned; give max_new_tokens=4 or less",
    ):
        generate_tokens(model, [[1], [2] * 13], GenerationConfig(max_new_tokens=5))
    with pytest.raises(DataError, match="prompt 0 has 17 tokens, .* has learned; shorten it"):
        generate_tokens(model, [[2] * 17], GenerationConfig(max_new_tokens=1))
    monkeypatch.undo()
    completions = generate_tokens(model, [[2] * 13, [2] * 16], GenerationConfig(max_new_tokens=1))
    assert [len(completion.token_ids) for completion in completions] == [1, 1]
    assert len(generate_tokens(model, [[2] * 13], GenerationConfig(max_new_tokens=4))[0].token_ids) == 4
