"""Text of models and users for terminals and files, in which nothing drives a terminal or breaks a line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but newline and tab; what separates lines, or reorders the characters around it (bidirectional
embeddings, overrides and isolates); halves of surrogate pairs, which UTF-8 does not have."""


def printable(text: str) -> str:
    """The text with escapes, such as `\\x1b`, for control characters; newline and tab stay."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def printable_line(text: str) -> str:
    """The text with escapes for newline and tab too, so that it stays one line."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def json_text(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """An object in JSON; other characters than control characters are not escaped.

    Raises:
        TypeError: a value is not one of JSON.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def json_line(value: Mapping[str, Any]) -> str:
    """The same as a line of a file."""
    return f"{json_text(value)}\n"
