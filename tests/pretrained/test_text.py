"""Text and conversations with a real tokenizer of 49,152 tokens."""

from __future__ import annotations

import pydoc_data.topics
import random
from typing import Any

import pytest
from transformers import AutoTokenizer

from reallm.data.chat.template import ChatTemplate
from reallm.generation.conversation import Conversation
from reallm.generation.text import TextStream, TokenDecoder
from tests.helpers.smollm2 import smollm2_folder


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(smollm2_folder())


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    stream = TextStream(TokenDecoder(tokenizer), ("never in it",))
    return [*(stream.push(token).text for token in ids), stream.finish()]


def test_pieces_are_the_text_of_all_tokens(tokenizer: Any) -> None:
    number = random.Random(0)
    for _ in range(300):
        ids = number.choices(range(len(tokenizer) + 20), k=number.randrange(80))
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)
    unicode = [*range(32, 127), *range(0xA0, 0xD800, 7), *range(0x1F300, 0x1F700)]
    texts = ["".join(map(chr, number.choices(unicode, k=60))) for _ in range(300)]
    for text in [*texts, *list(pydoc_data.topics.topics.values())[:5]]:
        found = pieces(tokenizer, tokenizer.encode(text, add_special_tokens=False))
        assert "".join(found) == text
        assert not any("\ufffd" in piece for piece in found)


def test_a_conversation_keeps_what_was_sampled(tokenizer: Any) -> None:
    conversation = Conversation(tokenizer, ChatTemplate(tokenizer))
    asked = conversation.ask("What is the capital of France?")
    sampled = [tokenizer.convert_tokens_to_ids(letter) for letter in "Paris"] + [tokenizer.eos_token_id]
    conversation.answer(sampled, "Paris")
    again = conversation.ask("And of Spain?")
    assert again[: len(asked) + len(sampled)] == asked + sampled
    messages = [*conversation.messages, {"role": "user", "content": "And of Spain?"}]
    assert tokenizer.decode(again) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
