"""Turns that are read back from the tokens of conversations."""

from __future__ import annotations

import pytest

from reallm.data.chat.template import ChatTemplate
from reallm.data.chat.transcript import Said, read_transcript, split_calls
from reallm.data.messages import Message
from reallm.data.rows import Row
from tests.helpers.chat_templates import model_tokenizer
from tests.helpers.tokenizers import tiny_tokenizer

ROW = Row("1", "here", {})
TALK: list[Message] = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4\n\nIt is."},
    {"role": "user", "content": "user and model?"},
]
SAID = [Said("user", "2 + 2?"), Said("assistant", "4\n\nIt is."), Said("user", "user and model?")]


@pytest.mark.parametrize("model", ["qwen3", "glm4", "llama3", "mistral", "gemma", "smollm2", "deepseek-r1", "marked"])
def test_the_turns_of_a_prompt(model: str) -> None:
    tokenizer = model_tokenizer(model)
    ids = tokenizer(ChatTemplate(tokenizer).prompt(TALK, ROW), add_special_tokens=False)["input_ids"]
    said = read_transcript(ids, tokenizer)
    assert said[-3:] == SAID
    assert [one.role for one in said[:-3]] == (["system"] if model in ("llama3", "smollm2") else [])


@pytest.mark.parametrize("model", ["qwen3", "glm4", "llama3", "mistral", "deepseek-r1"])
def test_calls_and_their_results(model: str) -> None:
    tokenizer = model_tokenizer(model)
    call = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages: list[Message] = [
        TALK[0],
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "call00001"},
    ]
    ids = tokenizer(ChatTemplate(tokenizer).prompt(messages, ROW), add_special_tokens=False)["input_ids"]
    user, called, result = read_transcript(ids, tokenizer)[-3:]
    assert user == SAID[0]
    assert called.role == "assistant"
    assert "add" in called.text
    assert "4" in result.text
    if model != "qwen3":  # whose template has the user give the result
        assert result.role == "tool"
    if model in ("qwen3", "llama3", "mistral"):
        text, [shown] = split_calls(called.text)
        assert text == ""
        assert '"name": "add"' in shown


def test_a_text_without_roles_has_no_turns() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    assert read_transcript(tokenizer("hello user, how are you?\nassistant")["input_ids"], tokenizer) == []
    assert read_transcript([], tokenizer) == []


def test_calls_are_split_from_the_text_around_them() -> None:
    assert split_calls("a <b> c") == ("a <b> c", [])
    assert split_calls('I see.\n<tool_call>\n{"a": 1}\n</tool_call>\n<tool_call>{}</tool_call>') == (
        "I see.",
        ['{"a": 1}', "{}"],
    )
    assert split_calls("<tool_call>\n{cut") == ("", ["{cut"])
    assert split_calls('[TOOL_CALLS][{"name": "f"}]') == ("", ['[{"name": "f"}]'])
    assert split_calls('{"name": "f", "parameters": {}}') == ("", ['{"name": "f", "parameters": {}}'])
    assert split_calls('{"name": "f"} is JSON') == ('{"name": "f"} is JSON', [])
