"""Generation: decoding with a cache equals the full forward pass, and sampling does what its settings say."""

from __future__ import annotations

import pytest
import torch

from reallm.errors import ConfigError, DataError
from reallm.generation.engine import generate_tokens
from reallm.generation.sampling import SamplingConfig, sample
from reallm.generation.sequence import text_before
from reallm.model.config import RopeConfig
from reallm.model.packed import PackedSequences
from tests.helpers.variants import BASE, VARIANTS, build, next_logits

PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_decoding_equals_the_full_forward_pass_at_every_token(variant):
    model = build(VARIANTS[variant])
    completions = generate_tokens(model, PROMPTS, SamplingConfig(max_new_tokens=12, temperature=0))
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
    sampling = SamplingConfig(max_new_tokens=8, temperature=1.0, seed=5)
    together = generate_tokens(model, PROMPTS, sampling)
    others = generate_tokens(model, [PROMPTS[0], [7, 7], PROMPTS[2]], sampling)
    assert together[0].token_ids == others[0].token_ids
    assert together[2].token_ids == others[2].token_ids
    assert (
        generate_tokens(model, PROMPTS, SamplingConfig(max_new_tokens=8, temperature=1.0, seed=6))[0].token_ids
        != together[0].token_ids
    )


def test_a_sequence_ends_with_its_stop_token_and_the_others_go_on():
    model = build(BASE)
    free = generate_tokens(model, PROMPTS, SamplingConfig(max_new_tokens=10, temperature=0))
    stop = free[0].token_ids[3]
    stopped = generate_tokens(model, PROMPTS, SamplingConfig(max_new_tokens=10, temperature=0, stop_token_ids=(stop,)))
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
    free = generate_tokens(model, PROMPTS[:1], SamplingConfig(max_new_tokens=6, temperature=0))[0]
    wanted = f"<{free.token_ids[2]}>"
    stopped = generate_tokens(
        model,
        PROMPTS[:1],
        SamplingConfig(max_new_tokens=6, temperature=0, stop=(wanted,)),
        to_text=lambda ids: "".join(f"<{token}>" for token in ids),
    )[0]
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[2]) + 1]


def test_a_text_ends_before_the_first_stop_string_in_it():
    assert text_before("one two", ["wo", "e t"]) == "on"
    assert text_before("one", ["two"]) == "one"
    assert text_before("END", ("END",)) == ""


def test_the_default_temperature_is_greedy_unless_top_k_or_top_p_say_to_sample():
    assert SamplingConfig().effective_temperature == 0
    assert SamplingConfig(top_k=5).effective_temperature == SamplingConfig(top_p=0.5).effective_temperature == 1
    assert SamplingConfig(temperature=0.3, top_p=0.5).effective_temperature == 0.3
    assert SamplingConfig(temperature=0, top_k=5).effective_temperature == 0


def test_lengths_that_the_model_was_not_made_for_are_told_once(caplog):
    longest = 11
    model = build(BASE.replace(max_positions=longest))
    generate_tokens(model, [[1]], SamplingConfig(max_new_tokens=longest - 1))
    assert not caplog.messages
    for _ in range(2):
        generate_tokens(model, [[1], [1, 2]], SamplingConfig(max_new_tokens=longest - 1))
    [message] = caplog.messages
    assert f"may have {longest + 1} tokens, more than the {longest} that the model was made for" in message
    dynamic = build(BASE.replace(rope=RopeConfig("dynamic", factor=2.0)))
    generate_tokens(dynamic, [[1]], SamplingConfig(max_new_tokens=longest + 5))
    assert len(caplog.messages) == 1


def frequencies(logits, sampling, n=20000):
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    tokens, _ = sample(logits.expand(n, -1), sampling, generators)
    return torch.bincount(tokens, minlength=logits.numel()) / n


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    # the standard error of a frequency over 20000 draws is at most 0.0036
    assert torch.allclose(frequencies(logits, SamplingConfig(temperature=1.0)), logits.exp(), atol=0.02)
    hot = (logits / 2).softmax(-1)
    assert torch.allclose(frequencies(logits, SamplingConfig(temperature=2.0)), hot, atol=0.02)
    two = torch.tensor([0, 2 / 3, 0, 1 / 3])
    assert torch.allclose(frequencies(logits, SamplingConfig(top_k=2)), two, atol=0.02)
    assert torch.allclose(frequencies(logits, SamplingConfig(top_p=0.75)), two, atol=0.02)
    assert frequencies(logits, SamplingConfig(top_p=0.4)).tolist() == [0, 1, 0, 0]
    assert frequencies(logits, SamplingConfig(top_k=1)).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature=-1 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be more than 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"stop": ("END", "")}, "stop has an empty string"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**settings)


def test_prompts_that_cannot_be_continued():
    model = build(BASE)
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        generate_tokens(model, [[1], []], SamplingConfig())
    with pytest.raises(DataError, match="prompt 0 has token 50, but the model has tokens 0 to 49; .*min_vocab_size="):
        generate_tokens(model, [[50]], SamplingConfig())
    assert generate_tokens(model, [], SamplingConfig()) == []


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
        generate_tokens(model, [[1], [2] * 13], SamplingConfig(max_new_tokens=5))
    with pytest.raises(DataError, match="prompt 0 has 17 tokens, .* has learned; shorten it"):
        generate_tokens(model, [[2] * 17], SamplingConfig(max_new_tokens=1))
    monkeypatch.undo()
    completions = generate_tokens(model, [[2] * 13, [2] * 16], SamplingConfig(max_new_tokens=1))
    assert [len(completion.token_ids) for completion in completions] == [1, 1]
    assert len(generate_tokens(model, [[2] * 13], SamplingConfig(max_new_tokens=4))[0].token_ids) == 4
