"""A model continues prompts, given as text or as token ids."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
import transformers

from reallm import ConfigError, DataError, ReaLModel
from reallm.engine import generative_model
from tests.helpers.tokenizers import tiny_tokenizer


def tiny_model(**changes):
    settings = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "eos_token_id": 2,
    }  # fmt: skip
    return ReaLModel.from_llama(transformers.LlamaConfig(**settings | changes), seed=1)


@pytest.fixture
def model():
    return tiny_model()


def test_generate_takes_token_ids_and_ends_at_the_checkpoints_end_token(model):
    free = model.generate([[1, 5], [7]], max_new_tokens=5, temperature=0, stop_token_ids=())
    assert [len(completion.token_ids) for completion in free] == [5, 5]
    assert free[0].text is None
    ended = tiny_model(eos_token_id=free[0].token_ids[0])
    assert ended.generate([[1, 5]], max_new_tokens=5, temperature=0)[0].finish_reason == "stop"


def test_the_cache_is_given_back_or_kept_for_the_next_call(model):
    prompt = [[n % 40 for n in range(300)]]
    model = tiny_model(max_position_embeddings=400)
    once = model.generate(prompt, max_new_tokens=4, stop_token_ids=())
    assert model._kept_engine is None
    kept = model.generate(prompt, max_new_tokens=4, stop_token_ids=(), keep_cache=True)
    engine = model._kept_engine
    assert engine is not None
    again = model.generate(prompt, max_new_tokens=4, stop_token_ids=(), keep_cache=True)
    assert model._kept_engine is engine
    model.generate([[1]], max_new_tokens=1)
    assert model._kept_engine is None
    assert kept == once
    assert [each.token_ids for each in again] == [each.token_ids for each in once]


def test_token_ids_are_never_encoded_again(model, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("text was encoded, but token ids were given")

    tokenizer = tiny_tokenizer()
    for name in ("encode", "__call__", "_encode_plus"):
        monkeypatch.setattr(type(tokenizer), name, refuse)
    prompts = [[1, 5], torch.tensor([7])]
    free = model.generate(prompts, max_new_tokens=5, stop_token_ids=())
    decoded = model.generate(prompts, max_new_tokens=5, stop_token_ids=(), tokenizer=tokenizer)
    assert [each.token_ids for each in decoded] == [each.token_ids for each in free]
    assert [each.prompt_ids for each in decoded] == [[1, 5], [7]]
    assert decoded[0].text == tokenizer.decode(free[0].token_ids, skip_special_tokens=True)


def test_generating_keeps_the_training_mode(model):
    model.train()
    model.generate([[1]], max_new_tokens=1)
    assert model.training


def test_a_stream_that_is_not_at_its_end_is_closed_before_the_interpreter_exits(model, monkeypatch):
    at_exit = []
    monkeypatch.setattr(
        generative_model,
        "weakref",
        SimpleNamespace(ref=weakref.ref, finalize=lambda _, callback: at_exit.append(callback)),
    )
    model.train()
    events = model.stream([[1, 5]], max_new_tokens=9, stop_token_ids=())
    next(events)
    assert not model.training
    [close] = at_exit
    close()
    assert model.training
    assert list(events) == []
    del events
    close()


def test_mistakes_in_generate_are_named(model):
    with pytest.raises(DataError, match="must be a list"):
        model.generate("one text")
    with pytest.raises(DataError, match="text needs a tokenizer"):
        model.generate(["one text"])
    with pytest.raises(ConfigError, match=r"stop=\['END'\]"):
        model.generate([[1]], stop="END")
    critic = ReaLModel.from_llama(model.hf_config, is_critic=True)
    with pytest.raises(ConfigError, match="^a reward model or critic gives scores, not text; take a language model$"):
        critic.generate([[1]])
