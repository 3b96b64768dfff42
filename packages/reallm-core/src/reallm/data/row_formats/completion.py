"""TRL's prompt and completion, each a text or a list of messages; and prompts with an answer, or alone, likewise."""

from __future__ import annotations

from typing import Any

from reallm.data.row import Row
from reallm.data.row_formats.conversion import as_messages, converted, untrained


def matches(row: Row) -> bool:
    """Whether the row has a prompt and its completion."""
    return "prompt" in row and "completion" in row


def convert(row: Row) -> Row:
    """Give `prompt` and `answer` of texts, `messages` if one of them is a list; only the completion is trained."""
    return join(row, "completion")


def join(row: Row, answer: str) -> Row:
    """`prompt` and its `answer` under this key, as two texts or as one conversation."""
    if not isinstance(row.values.get("prompt"), list) and not isinstance(row.values.get(answer), list):
        values: dict[str, Any] = {"prompt": row.text("prompt"), "answer": row.text(answer)}
        return converted(row, values, [answer], {"answer": answer})
    messages = [*untrained(as_messages(row, "prompt", "user")), *as_messages(row, answer, "assistant")]
    return converted(row, {"messages": messages}, [answer], {"messages": "prompt"})


def convert_prompt(row: Row) -> Row:
    """Give `prompt`, or `messages` if it is a list."""
    if isinstance(row.values.get("prompt"), list):
        return converted(row, {"messages": as_messages(row, "prompt", "user")}, (), {"messages": "prompt"})
    return converted(row, {"prompt": row.text("prompt")}, (), {})
