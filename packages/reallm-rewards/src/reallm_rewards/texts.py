"""Completions and parameters as reward functions get them: text or messages, one value or one for each completion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from reallm.errors import DataError, kind_of

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion, which for messages is the content of the last one; without content: empty."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, Sequence) and not isinstance(content, str):  # parts, of which some may be no text
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return str(content or "")


def answer_text(text: str) -> str:
    """What stands between the last `<answer>` and `</answer>`; without these, the whole text."""
    found = _ANSWER.findall(text)
    return str(found[-1]) if found else text


def for_each(name: str, value: Any, n: int) -> list[Any]:
    """A parameter for each of `n` completions: a list, as columns are, or one value for all.

    Raises:
        DataError: a list has another length; names the parameter.
    """
    if not isinstance(value, list):
        return [value] * n
    if len(value) != n:
        raise DataError(f"{name} has {len(value)} values for {n} completions")
    return value


def reference_text(answer: Any) -> str | None:
    """A reference as text: text or a number; None if there is none.

    Raises:
        DataError: it is something else.
    """
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    raise DataError(f"column 'answer': found {kind_of(answer)}, wanted text or a number")
