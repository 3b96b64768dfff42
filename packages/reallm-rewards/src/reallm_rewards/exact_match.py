"""The reward `exact_match`."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from reallm_rewards.texts import answer_text, completion_text, reference_text

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(
    completions: Sequence[Any],
    answer: Sequence[Any],
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    **columns: Any,
) -> list[float | None]:
    """1 for a completion that is its reference, else 0; None without a reference.

    What a completion has in `<answer>...</answer>` is compared, or all of it. Space at both ends does not count.

    Args:
        completions: texts or messages.
        answer: references: text, a number, or a list of those that are right.
        ignore_case: whether upper and lower case are the same.
        ignore_punctuation: whether punctuation does not count.
        columns: further columns, which are not used.

    Raises:
        DataError: a reference is something else.
    """

    def form(text: str) -> str:
        text = text.lower() if ignore_case else text
        return (text.translate(_NO_PUNCTUATION) if ignore_punctuation else text).strip()

    rewards: list[float | None] = []
    for completion, one in zip(completions, answer, strict=True):
        right = [reference_text(each) for each in (one if isinstance(one, list | tuple) else [one])]
        references = {form(text) for text in right if text is not None}
        found = form(answer_text(completion_text(completion)))
        rewards.append(float(found in references) if references else None)
    return rewards
