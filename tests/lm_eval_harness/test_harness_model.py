"""The backend of the harness gives the numbers and texts of the harness's own model of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reallm.errors import ConfigError, NonFiniteError
from tests.lm_eval_harness.conftest import ours, requests, theirs

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
PAIRS = [
    ("The sky is", " blue"),
    ("The sky is ", "blue"),  # the blank belongs to the continuation
    ("", "The sky is blue"),
    ("Question: what is 2 + 2?\nAnswer:", " 4"),
    ("Question: what is 2 + 2?\nAnswer:", " a whole number that is even"),
    (TEXT * 3, " " + TEXT),
    ("a", " b"),
]
TINY_LENGTH = 40


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_log_likelihoods_are_those_of_transformers(checkpoints: dict[str, Path], name: str) -> None:
    pairs = requests("loglikelihood", *PAIRS)
    expected = theirs(checkpoints[name]).loglikelihood(pairs)
    found = ours(checkpoints[name]).loglikelihood(pairs)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=2e-5, abs=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_continuation_that_greedy_decoding_gives_is_called_greedy(checkpoints: dict[str, Path]) -> None:
    model = ours(checkpoints["smollm2"])
    prompt = "The capital of France is"
    (text,) = model.generate_until(requests("generate_until", (prompt, {"max_gen_toks": 2})))
    pairs = requests("loglikelihood", (prompt, text), (prompt, " zebra" + text))
    assert [greedy for _, greedy in model.loglikelihood(pairs)] == [True, False]


def test_log_probabilities_that_are_not_finite_are_an_error(checkpoints: dict[str, Path]) -> None:
    model = ours(checkpoints["tiny"])
    with torch.no_grad():
        model.model.get_parameter("layers.1.mlp.up.weight").fill_(3e38)
    with pytest.raises(NonFiniteError, match="the log-probabilities of the model are NaN or infinite; .* block 1 of"):
        model.loglikelihood(requests("loglikelihood", ("The sky is", " blue")))


def test_long_requests_are_cut_on_the_left(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = requests("loglikelihood", (TEXT * 9, " " + TEXT[:20]), ("short", " one"))
    expected = theirs(checkpoints["tiny"], max_length=TINY_LENGTH).loglikelihood(pairs)
    model = ours(checkpoints["tiny"])
    monkeypatch.setattr(type(model), "max_length", TINY_LENGTH)
    assert model.loglikelihood(pairs) == [(pytest.approx(value, rel=1e-5), greedy) for value, greedy in expected]


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_whole_texts_are_scored_in_windows(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    texts = requests("loglikelihood_rolling", (TEXT * 4,), ("short",), ("",))
    expected = theirs(checkpoints[name], max_length=TINY_LENGTH).loglikelihood_rolling(texts)
    model = ours(checkpoints[name])
    monkeypatch.setattr(type(model), "max_length", TINY_LENGTH)
    assert model.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_generated_texts_are_those_of_transformers(checkpoints: dict[str, Path], name: str) -> None:
    greedy = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    longer = {"until": "zzz", "max_gen_toks": 20}
    arguments = [("The sky is", greedy), ("One, two,", longer), (TEXT, greedy), ("Water boils at", longer)]
    texts = requests("generate_until", *arguments)
    found = ours(checkpoints[name]).generate_until(texts)
    assert found == theirs(checkpoints[name]).generate_until(texts)
    assert not any("\n" in found[index] or "." in found[index] for index in (0, 2))


def test_sampling_follows_the_options_of_the_task(checkpoints: dict[str, Path]) -> None:
    model = ours(checkpoints["smollm2"])
    sampled = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    greedy = {"until": [], "max_gen_toks": 8, "do_sample": False, "temperature": 1.5}
    found = model.generate_until(requests("generate_until", ("Once upon a", sampled), ("Once upon a", greedy)))
    assert found[0] != found[1]
    assert found[1] == model.generate_until(requests("generate_until", ("Once upon a", {"max_gen_toks": 8})))[0]


def test_conversations_are_rendered_by_the_chat_template(checkpoints: dict[str, Path]) -> None:
    history = [{"role": "user", "content": "Hi"}]
    assert ours(checkpoints["smollm2"]).apply_chat_template(history) == theirs(
        checkpoints["smollm2"]
    ).apply_chat_template(history)


def test_more_tokens_than_positions_is_an_error(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"a task wants 9,999 new tokens, but the model has 256 positions"):
        ours(checkpoints["tiny"]).generate_until(requests("generate_until", ("a", {"max_gen_toks": 9999})))
