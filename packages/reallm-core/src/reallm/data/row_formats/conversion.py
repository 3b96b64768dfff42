"""What conversions of rows have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from reallm.data.row import Row, describe
from reallm.foreign_files import json_or_none

Message = dict[str, Any]

CANONICAL = ("prompt", "answer", "messages", "text", "chosen", "rejected", "pos_answers", "neg_answers")
"""Keys that datasets read; a converted row has those that its format gives, and no others of them."""


def converted(row: Row, values: Mapping[str, Any], taken: Iterable[str], names: Mapping[str, str]) -> Row:
    """The row with `values` instead of the keys `taken`; `names` are the file's keys for those of `values`."""
    without = {*CANONICAL, *taken}
    kept = {key: value for key, value in row.values.items() if key not in without}
    return dataclasses.replace(
        row,
        values={**kept, **values},
        names={**row.names, **{key: row.name(name) for key, name in names.items()}},
        converted_from=row.original,
    )


def message_list(row: Row, key: str) -> list[Any]:
    """The list of messages of `key`, also as JSON text, as tables have it. Raises DataError."""
    wanted = "a list of messages"
    value = row.get(key, (list, str), wanted)
    if isinstance(value, str):
        value = json_or_none(value)
        if not isinstance(value, list):
            raise row.error(f"key '{row.name(key)}': found {describe(row.values[key])}, wanted {wanted}")
    if not value:
        raise row.error(f"key '{row.name(key)}': found an empty list, wanted {wanted}")
    return value


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, and not one of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def as_messages(row: Row, key: str, role: str) -> list[Any]:
    """The value of `key`, a list of messages or the text of one message of `role`."""
    value = row.values.get(key)
    return [{"role": role, "content": row.text(key)}] if isinstance(value, str) else message_list(row, key)


def untrained(messages: Iterable[Any]) -> list[Any]:
    """Messages whose assistant's turns are not trained."""
    return [
        {**message, "train": False} if isinstance(message, Mapping) and message.get("role") == "assistant" else message
        for message in messages
    ]
