"""A conversation as token ids: what was sampled stays as it was sampled, wherever the template allows."""

from __future__ import annotations

import pytest

from reallm.data.chat.template import ChatTemplate
from reallm.errors import DataError
from reallm.generation.conversation import Conversation
from tests.helpers.chat_templates import model_tokenizer
from tests.helpers.tokenizers import tiny_tokenizer


def conversation(model: str) -> Conversation:
    tokenizer = model_tokenizer(model)
    return Conversation(tokenizer, ChatTemplate(tokenizer))


@pytest.mark.parametrize("model", ["smollm2", "llama3", "gemma", "mistral", "marked"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
def test_sampled_tokens_stay_as_they_were_sampled(model: str, ended: bool) -> None:
    tokenizer, talk = model_tokenizer(model), conversation(model)
    asked = talk.ask("What is the capital of France?")
    # one token a character: the tokenizer would give fewer
    sampled = [token for char in "Paris." for token in tokenizer.encode(char, add_special_tokens=False)]
    assert sampled != tokenizer.encode("Paris.", add_special_tokens=False)
    ends = {"gemma": "<end_of_turn>", "mistral": "</s>", "llama3": "<|eot_id|>"}
    end = [tokenizer.convert_tokens_to_ids(ends.get(model, "<|im_end|>"))] if ended else []
    talk.answer([*sampled, *end], "Paris.")
    again = talk.ask("Are you well?")
    assert again[: len(asked) + len(sampled)] == [*asked, *sampled]
    messages = [*talk.messages, {"role": "user", "content": "Are you well?"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(again) == rendered


@pytest.mark.parametrize(
    ("model", "text"),
    [("qwen3", "<think>\nhm\n</think>\n\nParis."), ("llama3", " Paris. "), ("deepseek-r1-thinking", "Paris.")],
)
def test_where_the_template_shows_answers_differently_all_of_it_is_rendered(model: str, text: str) -> None:
    tokenizer, talk = model_tokenizer(model), conversation(model)
    talk.ask("What is the capital of France?")
    talk.answer(tokenizer.encode(text, add_special_tokens=False), text)
    messages = [*talk.messages, {"role": "user", "content": "Are you well?"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert talk.ask("Are you well?") == tokenizer.encode(rendered, add_special_tokens=False)


def test_a_message_without_an_answer_is_not_part_of_it() -> None:
    talk = conversation("smollm2")
    first = talk.ask("hi")
    assert talk.messages == []
    assert talk.ask("hi") == first


def test_the_system_message_can_be_set_and_stays_when_the_rest_is_forgotten() -> None:
    tokenizer, talk = model_tokenizer("smollm2"), conversation("smollm2")
    talk.set_system("Be brief.")
    talk.ask("hi")
    talk.answer([5], "a")
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    talk.set_system("Be long.")
    assert "Be long." in tokenizer.decode(talk.ask("hello"))
    assert "Be brief." not in tokenizer.decode(talk.ask("hello"))
    talk.clear()
    assert talk.messages == [{"role": "system", "content": "Be long."}]
    assert tokenizer.decode(talk.ask("hi")).startswith("<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\nhi")


def test_a_system_message_that_the_template_refuses_is_not_set() -> None:
    talk = conversation("gemma")
    with pytest.raises(DataError, match="the conversation: the chat template refuses it: System role not supported"):
        talk.set_system("Be brief.")
    assert talk.system is None
    assert talk.ask("hi")


def test_half_a_character_at_the_end_of_an_answer_stays() -> None:
    tokenizer = tiny_tokenizer()
    talk = Conversation(tokenizer, ChatTemplate(tokenizer))
    asked = talk.ask("hi")
    half = tokenizer.encode("€", add_special_tokens=False)[:2]
    talk.answer(half, tokenizer.decode(half))
    assert talk.ask("go on")[: len(asked) + 2] == [*asked, *half]
