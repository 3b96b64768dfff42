"""What rewards answers to sums."""

import re
from typing import Any


def right_sum(completions: list[str], total: list[int], **columns: Any) -> list[float]:
    """1 for an answer whose first number is the sum, else 0."""
    numbers = [re.search(r"\d+", text) for text in completions]
    return [float(found is not None and found[0] == str(right)) for found, right in zip(numbers, total, strict=True)]
