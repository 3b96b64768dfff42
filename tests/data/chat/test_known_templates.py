"""Chat templates by name, from a file, or as text."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from reallm.data.chat.known_templates import NAMES, set_chat_template
from reallm.data.chat.template import ChatTemplate
from reallm.data.messages import Message
from reallm.data.rows import Row
from reallm.errors import ConfigError
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

ROW = Row("1", "here", {})
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "and 6?"},
    {"role": "assistant", "content": "six"},
]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALL: dict[str, Any] = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def turns(chat_template: str, messages: list[Message], tools: tuple[Any, ...] = ()) -> tuple[str, list[str]]:
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True)
    set_chat_template(tokenizer, chat_template)
    chat = ChatTemplate(tokenizer).conversation(messages, ROW, tools)
    assert chat.remarks == ()
    return chat.text, [chat.text[start:end] for start, end in chat.turns]


@pytest.mark.parametrize(
    ("name", "text", "end"),
    [
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
            "<|im_start|>assistant\n4<|im_end|>",
            "<|im_end|>",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n2 + 2?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>",
            "<|eot_id|>",
        ),
        ("plain", "System: Be brief.\n\nUser: 2 + 2?\n\nAssistant: 4<|im_end|>", "<|im_end|>"),
    ],
)
def test_every_turn_is_trained_with_a_template_of_this_package(name: str, text: str, end: str) -> None:
    whole, found = turns(name, TALK)
    space = " " if name == "plain" else ""
    assert whole.startswith(text)
    assert found == [f"{space}4{end}", f"{space}six{end}"]


@pytest.mark.parametrize("name", ["chatml", "llama3"])
@pytest.mark.parametrize("content", [{}, {"content": "Let me see."}])
def test_tools_and_calls_are_written(name: str, content: dict[str, str]) -> None:
    call: Message = {"role": "assistant", "tool_calls": [CALL, CALL], **content}
    messages = [*TALK[:2], call, {"role": "tool", "content": "4"}, TALK[2]]
    text, found = turns(name, messages, (TOOL,))
    assert '"parameters": {}' in text
    assert "Be brief." in text
    assert found[0].count('{"name": "add", ') == 2
    assert found[0].startswith(content.get("content", ""))
    assert len(found) == 2


def test_a_file_or_a_text(tmp_path: Path) -> None:
    file = tmp_path / "my.jinja"
    file.write_text(CHATML)
    for given in (str(file), CHATML):
        tokenizer = tiny_tokenizer(chat_template=None)
        set_chat_template(tokenizer, given)
        assert tokenizer.chat_template == CHATML


def test_one_of_several_templates_of_a_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"chatml": "{{ messages[0].content }}", "other": CHATML}
    set_chat_template(tokenizer, "other")
    assert tokenizer.chat_template == CHATML


def test_the_token_that_ends_turns_ends_sequences() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.eos_token = "<s>"
    set_chat_template(tokenizer, "chatml")
    assert tokenizer.eos_token == "<|im_end|>"
    tokenizer.eos_token = "<s>"
    set_chat_template(tokenizer, "plain")
    assert tokenizer.eos_token == "<s>"


def test_tokens_that_were_added_for_a_template_become_special() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    n_tokens = len(tokenizer)
    set_chat_template(tokenizer, "llama3")
    assert len(tokenizer) == n_tokens
    assert tokenizer.eos_token == "<|eot_id|>"
    assert tokenizer.decode(tokenizer("hi<|eot_id|>")["input_ids"], skip_special_tokens=True) == "hi"


def test_tokens_that_the_tokenizer_does_not_have_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reallm"):
        set_chat_template(tiny_tokenizer(), "llama3")
    assert caplog.messages == [
        "note: dataset.chat_template writes <|start_header_id|> and <|end_header_id|> and <|eot_id|>, which the "
        "tokenizer splits like any text; make tokens of them with "
        "model.add_tokens=[<|start_header_id|>,<|end_header_id|>,<|eot_id|>]"
    ]


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    known = ", ".join(NAMES)
    with pytest.raises(ConfigError, match=rf"^dataset.chat_template=chatlm: no such .* 'chatml'\?; known are {known}$"):
        set_chat_template(tokenizer, "chatlm")
    with pytest.raises(ConfigError, match=r"^dataset.chat_template: the template, line 2: "):
        set_chat_template(tokenizer, "{{ bos_token }}\n{% for m in messages %}")
    file = tmp_path / "a.jinja"
    file.write_bytes(b"{{ '\xe9' }}")
    with pytest.raises(ConfigError, match=r"a.jinja cannot be read \("):
        set_chat_template(tokenizer, str(file))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe cannot be read \(it is not a regular file\)$"):
        set_chat_template(tokenizer, str(tmp_path / "pipe"))
    file.write_text("{% endfor %}")
    with pytest.raises(ConfigError, match=r"a.jinja, line 1: "):
        set_chat_template(tokenizer, str(file))
    assert tokenizer.chat_template == CHATML
