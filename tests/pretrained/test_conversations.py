"""Conversations with the tokenizer and the chat template of a real checkpoint, SmolLM2-135M-Instruct."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from reallm.data.chat.known_templates import set_chat_template
from reallm.data.chat.transcript import read_transcript
from reallm.data.messages import read_messages
from reallm.data.rows import Row
from reallm_datasets.encoding import Encoder
from tests.helpers.smollm2 import smollm2_folder

TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4, of course."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "\n\n6."},
]


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(smollm2_folder())


def encode(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
    row = Row("1", "here", {"messages": messages})
    encoder = Encoder(tokenizer)
    [encoded] = encoder.sequences([encoder.chat.conversation(read_messages(row, "messages"), row)])
    return encoded.ids.tolist(), encoded.answer_mask.tolist()


def test_what_is_trained_is_what_the_model_is_to_write_after_its_prompts(tokenizer: Any) -> None:
    ids, mask = encode(tokenizer, TALK)
    written = [token for token, is_trained in zip(ids, mask, strict=True) if is_trained]
    assert tokenizer.decode(written) == "4, of course.<|im_end|>\n\n6.<|im_end|>"
    for i in (1, 3):
        prompt = tokenizer.apply_chat_template(TALK[:i], add_generation_prompt=True)["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert not mask[len(prompt) - 1]
        assert mask[len(prompt)]


def test_the_turns_are_read_back(tokenizer: Any) -> None:
    ids, _ = encode(tokenizer, TALK)
    system, *said = read_transcript(ids, tokenizer)
    assert system.role == "system"
    assert [one.role for one in said] == [message["role"] for message in TALK]
    assert [one.text for one in said] == [message["content"].strip() for message in TALK]


def test_a_call_needs_another_template(tokenizer: Any) -> None:
    set_chat_template(tokenizer, "chatml")
    assert tokenizer.eos_token == "<|im_end|>"
    call = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": '{"a": 2}'}]}
    ids, mask = encode(tokenizer, [TALK[0], call])
    written = [token for token, is_trained in zip(ids, mask, strict=True) if is_trained]
    assert tokenizer.decode(written) == ('<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>')
