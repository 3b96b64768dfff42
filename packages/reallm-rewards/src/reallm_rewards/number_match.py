"""The reward `number_match`."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from reallm_rewards.numbers import final_number
from reallm_rewards.texts import completion_text, reference_text


def number_match(
    completions: Sequence[Any], answer: Sequence[Any], tolerance: float = 0.0, **columns: Any
) -> list[float | None]:
    """1 for a completion whose final number is that of its reference, else 0; None if the reference has no number.

    For where the final number stands and how it may be written, see `reallm_rewards.numbers.final_number`; references
    are read in the same way, so those of GSM8K, which end with `#### 42`, can be used as they are.

    Args:
        completions: texts or messages.
        answer: references: text or a number.
        tolerance: largest absolute difference of numbers that match.
        columns: further columns, which are not used.

    Raises:
        DataError: a reference is neither text nor a number.
    """
    rewards: list[float | None] = []
    for completion, one in zip(completions, answer, strict=True):
        text = reference_text(one)
        wanted = None if text is None else final_number(text)
        found = final_number(completion_text(completion))
        if wanted is None:
            rewards.append(None)
        else:
            rewards.append(float(found is not None and abs(found - wanted) <= Fraction(tolerance)))
    return rewards
