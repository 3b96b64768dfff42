"""The reward `format`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reallm.errors import DataError
from reallm_rewards.texts import completion_text, for_each

THINK_ANSWER = r"<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>"
"""A chain of thought in `<think>` and then the answer in `<answer>`, each once."""


def format(  # noqa: A001 - the name of the reward
    completions: Sequence[Any], pattern: str | Sequence[str | None] = THINK_ANSWER, **columns: Any
) -> list[float | None]:
    """1 for a completion that a regular expression matches as a whole, else 0; None if the expression is null.

    Space at both ends of a completion does not count, and `.` matches line ends, too.

    Args:
        completions: texts or messages.
        pattern: the expression, or that of each completion.
        columns: further columns, which are not used.

    Raises:
        DataError: an expression is not valid.
    """
    patterns = for_each("pattern", pattern, len(completions))
    return [
        None if one is None else float(_compiled(one).fullmatch(completion_text(completion).strip()) is not None)
        for completion, one in zip(completions, patterns, strict=True)
    ]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except (re.error, TypeError) as error:
        raise DataError(f"pattern {pattern!r}: not a regular expression: {error}") from error
