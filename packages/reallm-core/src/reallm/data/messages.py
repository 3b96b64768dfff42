"""Brings the messages of a conversation, and tools, into one form from the forms in which data has them. No torch.

{"role": "assistant", "content": null, "tool_calls": [{"name": "add", "arguments": "{}"}], "weight": 0}
->
{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}],
 "train": False}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from reallm.data.row_sources import records
from reallm.data.rows import Row, describe
from reallm.foreign_files import NOT_JSON, json_or_none, parse_json, reason_of

Message = dict[str, Any]
"""A message in the one form: the text `role`; the text `content`, which only a message with tool calls can lack;
`tool_calls`, if any, each as `{"type": "function", "function": {"name": ..., "arguments": object or JSON text}}`;
`train`, only if it is False: the turn is not trained; and further keys for the chat template. No value is None."""

Tool = dict[str, Any]
"""A function that the model may call: `{"type": "function", "function": {"name": ..., ...}}`."""

SWITCHES = ("weight", "train", "loss", "trainable")
"""Keys of a message that say whether its turn is trained: 0 or false, 1 or true."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message for its reasoning; transformers gives a template all of them if one is there."""


def read_messages(row: Row, key: str) -> list[Message]:
    """The messages of `key`, at least one, in the one form.

    Raises:
        DataError: something is missing or of a wrong type, or a part of a content is not text; names row and key.
    """
    wanted = 'a list of messages such as {"role": "user", "content": "..."}'
    messages, name = row.get(key, list, wanted), row.name(key)
    if not messages:
        raise row.error(f"key '{name}': found an empty list, wanted {wanted}")
    return [_message(row, message, f"{name}[{i}]") for i, message in enumerate(messages)]


def read_tools(row: Row, default: Sequence[Tool] = ()) -> Sequence[Tool]:
    """The tools of a row's key `tools`, a list or JSON text of one; `default` if it has none.

    Raises:
        DataError: they are not a list of functions; names row and key.
    """
    if "tools" not in row:
        return default
    wanted, name = "a list of functions, or JSON text of one", row.name("tools")
    return [_tool(row, tool, f"{name}[{i}]") for i, tool in enumerate(_list(row, row.values["tools"], name, wanted))]


def load_tools(path: str | Path) -> list[Tool]:
    """The tools of a file: a JSON list, or JSON lines with a function on each.

    Raises:
        DataError: the file cannot be read, or has something else in it; names the location.
    """
    with closing(records(path)) as found:
        return [_tool(Row(record.position, record.place, {}), record.value, "") for record in found]


def _message(row: Row, given: Any, name: str) -> Message:
    if not isinstance(given, Mapping):
        raise row.error(f"key '{name}': found {describe(given)}, wanted a message with role and content")
    message = {key: value for key, value in given.items() if value is not None and key not in SWITCHES}
    message["role"] = row.text_in(given, "role", name)
    calls = _list(row, message.pop("tool_calls", []), f"{name}.tool_calls", "a list of tool calls")
    if calls:
        message["tool_calls"] = [_call(row, call, f"{name}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if isinstance(message.get("content"), list):
        message["content"] = _joined(row, message["content"], f"{name}.content")
    elif "content" in message or not calls:
        message["content"] = row.text_in(given, "content", name)
    if calls and not message.get("content"):
        message.pop("content", None)
    if not _is_trained(row, given, name):
        message["train"] = False
    return message


def _joined(row: Row, parts: list[Any], name: str) -> str:
    """The text of a content that is given in parts, as in `[{"type": "text", "text": "..."}]`."""
    texts = []
    for i, part in enumerate(parts):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type", "text") if isinstance(part, Mapping) else None
            found = describe(part) if kind in (None, "text") else f"a part of type '{kind}'"
            raise row.error(f"key '{name}[{i}]': found {found}, wanted text; only text is supported")
        texts.append(row.valid_text(text, f"key '{name}[{i}]'"))
    return "".join(texts)


def _call(row: Row, given: Any, name: str) -> dict[str, Any]:
    wanted = 'a tool call such as {"function": {"name": "...", "arguments": {...}}}'
    if not isinstance(given, Mapping):
        raise row.error(f"key '{name}': found {describe(given)}, wanted {wanted}")
    function = given.get("function")
    if function is None:  # {"name": ..., "arguments": ...}, without the wrapper
        function, others = given, {}
    elif isinstance(function, Mapping):
        others, name = {key: value for key, value in given.items() if value is not None}, f"{name}.function"
    else:
        raise row.error(f"key '{name}.function': found {describe(function)}, wanted an object")
    call = {"name": row.text_in(function, "name", name), "arguments": _arguments(row, function, f"{name}.arguments")}
    if not others and function.get("id") is not None:
        others = {"id": function["id"]}
    return {**others, "type": "function", "function": call}


def _arguments(row: Row, function: Mapping[str, Any], name: str) -> Any:
    """Arguments as they were given, an object or JSON text of one; an empty object if there are none."""
    given = function.get("arguments")
    if given is None or given == "":
        return {}
    arguments = _parsed(row, given, name) if isinstance(given, str) else given
    if not isinstance(arguments, Mapping):
        raise row.error(f"key '{name}': found {describe(given)}, wanted an object, or JSON text of one")
    row.valid_text(json.dumps(arguments, ensure_ascii=False, default=str), f"key '{name}'")
    return given


def _tool(row: Row, given: Any, name: str) -> Tool:
    where = f"key '{name}': " if name else ""
    tool = json_or_none(given) if isinstance(given, str) else given
    wrapped = isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
    function = tool["function"] if wrapped else tool
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        wanted = 'a function such as {"type": "function", "function": {"name": "...", "parameters": {...}}}'
        raise row.error(f"{where}found {describe(given)}, wanted {wanted}")
    return {"type": "function", **tool} if wrapped else {"type": "function", "function": dict(function)}


def _list(row: Row, given: Any, name: str, wanted: str) -> list[Any]:
    value = given
    if isinstance(given, str):  # tables keep lists of unlike objects as JSON text
        value = _parsed(row, given, name) if given.strip() else []
    if value is None:
        return []
    if not isinstance(value, list):
        raise row.error(f"key '{name}': found {describe(given)}, wanted {wanted}")
    return value


def _is_trained(row: Row, message: Mapping[str, Any], name: str) -> bool:
    given = {key: message[key] for key in SWITCHES if message.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise row.error(f"key '{name}.{key}': found {describe(value)}, wanted 0 or false, or 1 or true")
    if len({bool(value) for value in given.values()}) > 1:
        keys = " and ".join(f"'{key}'" for key in given)
        raise row.error(f"key '{name}': {keys} contradict each other")
    if any(given.values()) and message["role"] != "assistant":
        raise row.error(
            f"key '{name}.{next(iter(given))}': only turns of the assistant can be trained one by one, and this one is "
            f"the {message['role']}'s; leave the key out, or train everything (dataset.train_on=all)"
        )
    return all(given.values())


def _parsed(row: Row, text: str, name: str) -> Any:
    """The value of a JSON text in a row."""
    try:
        return parse_json(text)
    except NOT_JSON as error:
        at = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        problem = at or reason_of(error)
        raise row.error(f"key '{name}': found text that is not JSON ({problem})") from error
