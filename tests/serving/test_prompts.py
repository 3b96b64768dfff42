"""Conversations with tools, and with what chat templates refuse."""

from __future__ import annotations

from typing import Any

import pytest

from reallm.serving.errors import APIError
from reallm.serving.prompts import chat_prompt
from reallm.serving.requests import ChatCompletionRequest
from reallm.serving.served_model import ServedModel
from tests.helpers.tokenizers import tiny_tokenizer

QUESTION = {"role": "user", "content": "How are you?"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
WITH_TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }};{% endfor %}{% endif %}"
    "{% for message in messages %}{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }})"
    "{% endfor %}|{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def text_of(template: str | None, *messages: Any, **parameters: Any) -> str:
    tokenizer = tiny_tokenizer(chat_template=template)
    served = ServedModel("tiny", tokenizer, len(tokenizer), 512)
    request = ChatCompletionRequest.model_validate({"messages": list(messages), **parameters})
    text = tokenizer.decode(chat_prompt(request, served))
    assert isinstance(text, str)
    return text


def test_tools_are_given_to_the_template_unless_none_is_to_be_called() -> None:
    assert text_of(WITH_TOOLS, QUESTION, tools=[TOOL]) == "add;user:How are you?|assistant:"
    assert text_of(WITH_TOOLS, QUESTION, tools=[TOOL], tool_choice="none") == "user:How are you?|assistant:"


def test_calls_and_their_results_are_in_the_prompt() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "2"}]  # fmt: skip
    assert text_of(WITH_TOOLS, QUESTION, *messages) == ('user:How are you?|assistant:add({"a": 1})|tool:2|assistant:')


def test_without_a_chat_template_completions_are_named() -> None:
    with pytest.raises(APIError, match="'tiny' has no chat template; use /v1/completions"):
        text_of(None, QUESTION)


def test_what_a_template_refuses_is_an_error_of_the_messages() -> None:
    with pytest.raises(APIError, match="the chat template refuses it: users only") as raised:
        text_of("{{ raise_exception('users only') }}", QUESTION)
    assert raised.value.param == "messages"
