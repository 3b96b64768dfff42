"""ShareGPT: `conversations` with `from` and `value`, and sometimes the columns `system` and `tools` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.data.row import Row, describe
from reallm.data.row_formats.conversion import Message, converted, message_list
from reallm.errors import quoted
from reallm.foreign_files import json_or_none

KEYS = ("conversations", "conversation")

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "ai", "bot", "model", "assistant"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
}
"""Who a message is `from`, in lower case -> its role."""

CALLS = ("function_call", "tool_call")
"""Senders of messages of the assistant that are function calls, as JSON text."""


def matches(row: Row) -> bool:
    """Whether the row has conversations."""
    return any(key in row for key in KEYS)


def convert(row: Row) -> Row:
    """Give `messages`; or `prompt`, `chosen` and `rejected`, if the row has two answers to a conversation."""
    key = next((key for key in KEYS if key in row), KEYS[0])
    messages = [message(row, given, f"{row.name(key)}[{i}]") for i, given in enumerate(message_list(row, key))]
    values: dict[str, Any] = {}
    system = row.values.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row.text("system")})
    tools = row.values.get("tools")
    if tools is not None and (not isinstance(tools, str) or tools.strip()):
        values["tools"] = tools
    taken = (*KEYS, "system", "tools")
    if "chosen" in row and "rejected" in row:
        answers = {name: [message(row, row.values[name], row.name(name))] for name in ("chosen", "rejected")}
        return converted(row, {**values, "prompt": messages, **answers}, taken, {"prompt": key})
    return converted(row, {**values, "messages": messages}, taken, {"messages": key})


def message(row: Row, given: Any, name: str) -> Message:
    """A message with `role` and `content` from one with `from` and `value`; further keys are kept."""
    if not isinstance(given, Mapping):
        raise row.error(f"key '{name}': found {describe(given)}, wanted a message with from and value")
    sender = _text(row, given, ("from", "role"), name)
    content = _text(row, given, ("value", "content"), name)
    others = {key: value for key, value in given.items() if key not in ("from", "role", "value", "content")}
    if sender.lower() in CALLS:
        return {"role": "assistant", "tool_calls": _calls(row, content, name), **others}
    if sender.lower() not in ROLES:
        wanted = quoted([*ROLES, *CALLS])
        raise row.error(f"key '{name}.from': found {describe(sender)}, wanted one of {wanted}")
    return {"role": ROLES[sender.lower()], "content": content, **others}


def _text(row: Row, given: Mapping[str, Any], keys: tuple[str, str], name: str) -> str:
    """The text of the first of the keys that the message has."""
    return row.text_in(given, next((key for key in keys if key in given), keys[0]), name)


def _calls(row: Row, text: str, name: str) -> list[dict[str, Any]]:
    found = json_or_none(text)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        wanted = 'JSON such as {"name": "...", "arguments": {...}}'
        raise row.error(f"key '{name}.value': found {describe(text)}, wanted {wanted}")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]
