"""The columns of a row that training hands on, as JSON in bytes: small in memory, and read when they are used."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from reallm.data.messages import Message
from reallm.data.row_formats import sharegpt
from reallm.data.rows import Row

_PROMPTS = frozenset({"prompt", "messages", *sharegpt.KEYS})
"""Keys of rows that the prompt is made of."""


def encode_columns(row: Row, messages: list[Message] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The columns of a row as uint8 [L], and remarks about those that are left out.

    Columns are those of the file, without the prompt and without nulls, and `messages` if the prompt is a conversation.
    Dates become text (ISO 8601), arrays lists and NaN null; a value that JSON cannot hold otherwise is left out.
    """
    kept = {} if messages is None else {"messages": _json(messages)}
    remarks = []
    for key, value in row.original.items():
        if value is None or key in _PROMPTS:
            continue
        try:
            kept[str(key)] = _json(value)
        except TypeError as error:
            remarks.append(f"without the column '{key}', which holds {error}")
    text = f"{{{','.join(f'{_json(key)}:{value}' for key, value in kept.items())}}}"
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8), tuple(remarks)


def decode_columns(values: np.ndarray) -> dict[str, Any]:
    """The columns that `encode_columns` gave, by name."""
    columns: dict[str, Any] = json.loads(values.tobytes().decode("utf-8", "surrogatepass"))
    return columns


def _json(value: Any) -> str:
    """A value as JSON text. Raises TypeError, which says what it is, if it has no such form."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):  # most values are as they should be, and looking at all of them takes long
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """A value as JSON has it. Raises TypeError, which says what it is, if it has no such form."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    raise TypeError(type(value).__name__)
