"""Functions that score an answer. They get the texts of prompt and answer, and the other columns of the row."""

from collections.abc import Mapping
from typing import Any


def plain(prompt: str, answer: str, columns: Mapping[str, Any]) -> float:
    """The share of an answer that is lower-case letters and blanks."""
    return sum(char in "abcdefghijklmnopqrstuvwxyz " for char in answer) / max(len(answer), 1)


def wanted(prompt: str, answer: str, columns: Mapping[str, Any]) -> float:
    """Whether the answer has the text of the row's column `wanted`."""
    return float(columns["wanted"] in answer)
