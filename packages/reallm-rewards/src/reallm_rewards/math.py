"""The reward `math`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from reallm.errors import ConfigError
from reallm_rewards.texts import answer_text, completion_text, reference_text

_LIMIT_S = 5
"""Seconds for reading an expression, and for comparing two."""


def math(completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""1 for a completion whose final expression equals its reference, else 0; None if the reference is no expression.

    Whether expressions are equal is decided by the library math-verify: `\frac{1}{2}`, `0.5` and `1/2` are.

    Args:
        completions: texts or messages, whose answer is in `\boxed{...}`, in `<answer>...</answer>`, or comes last.
        answer: references: LaTeX, with or without `$`, a number, or a solution with `\boxed{...}` or `#### ...`.
        columns: further columns, which are not used.

    Raises:
        ConfigError: math-verify is not installed.
        DataError: a reference is neither text nor a number.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ConfigError("reward 'math' needs math-verify; pip install 'reallm-rewards[math]'") from error
    # math-verify ends what takes too long by a signal, which only the main thread gets.
    limit = _LIMIT_S if threading.current_thread() is threading.main_thread() else None
    rewards: list[float | None] = []
    for completion, one in zip(completions, answer, strict=True):
        text = reference_text(one)
        wanted = [] if text is None else parse(_reference(text), parsing_timeout=limit)
        if not wanted:
            rewards.append(None)
            continue
        found = parse(answer_text(completion_text(completion)), parsing_timeout=limit)
        rewards.append(float(bool(found) and verify(wanted, found, timeout_seconds=limit)))
    return rewards


def _reference(text: str) -> str:
    text = text.rpartition("####")[2].strip()
    return text if "$" in text or "boxed" in text or "\\[" in text or "\\(" in text else f"${text}$"
