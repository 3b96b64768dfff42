"""Reward functions of small runs. Each run's processes for rewards import this module: it imports nothing heavy."""

from __future__ import annotations

from typing import Any

SHARE_OF_VOWELS = f"{__name__}:share_of_vowels"
VOWELS_OF_ANSWERS = f"{__name__}:vowels_of_answers"
SHORTNESS = f"{__name__}:shortness"
IS_SOLUTION = f"{__name__}:is_solution"
CONSTANT = f"{__name__}:constant"


def share_of_vowels(completions: list[str], **columns: Any) -> list[float]:
    """A reward that rises quickly: the share of characters that are vowels."""
    return [sum(char in "aeiou" for char in text) / max(len(text), 1) for text in completions]


def vowels_of_answers(completions: list[str], **columns: Any) -> list[float | None]:
    """The share of characters that are vowels, which does not apply to empty answers."""
    return [sum(char in "aeiou" for char in text) / len(text) if text else None for text in completions]


def shortness(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """A reward that does not apply to empty answers."""
    return [1 / len(ids) if ids else None for ids in completion_ids]


def is_solution(completions: list[str], solution: list[str]) -> list[float]:
    """A reward that reads a column."""
    return [float(text == right) for text, right in zip(completions, solution, strict=True)]


def constant(completions: list[str], **columns: Any) -> list[float]:
    """A reward that teaches nothing."""
    return [0.2 for _ in completions]
