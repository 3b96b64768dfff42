"""Conversations under `messages`, as OpenAI's fine-tuning files, TRL and reallm itself have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.data.row import Row
from reallm.data.row_formats import sharegpt
from reallm.data.row_formats.conversion import converted, message_list


def matches(row: Row) -> bool:
    """Whether the row has messages."""
    return "messages" in row


def convert(row: Row) -> Row:
    """Give `messages`, and `tools` of the older `functions`."""
    return converted(row, values(row), ["functions"], {})


def values(row: Row) -> dict[str, Any]:
    """The values `messages` and, if the row has functions, `tools`."""
    found: dict[str, Any] = {"messages": [_message(row, one, i) for i, one in enumerate(message_list(row, "messages"))]}
    functions = row.values.get("functions")
    if functions is not None and "tools" not in row:
        found["tools"] = [{"type": "function", "function": function} for function in row.get("functions", list)]
    return found


def _message(row: Row, given: Any, i: int) -> Any:
    """A message whose sender and function calls are in the form of today.

    Roles with other names, such as `ipython`, stay: they are for the chat template. But a turn of the assistant that
    is called `gpt` or `Assistant` would be rendered under this name, and not trained.
    """
    if not isinstance(given, Mapping):
        return given  # refused by those who read messages
    sender = str(given.get("role")).lower()
    if ("from" in given and "role" not in given) or sender in sharegpt.CALLS:
        return sharegpt.message(row, given, f"{row.name('messages')}[{i}]")
    message = dict(given)
    role = sharegpt.ROLES.get(sender)
    if sender == "function" or role in ("system", "user", "assistant"):
        message["role"] = role
    call = message.pop("function_call", None)
    if call is not None:
        message["tool_calls"] = [{"type": "function", "function": call}]
    return message
