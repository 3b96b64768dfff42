"""When numbers count as the same.

Shapes: T packed tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

MOST_LOGITS = 2e-5
"""Largest difference of float32 logits, relative to the largest logit where that is above 1. Two ways to add up the
same numbers differ by about 3e-6; a wrong epsilon, scale or activation by far more than 1e-4."""


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether logits are the same but for rounding."""
    return found.shape == expected.shape and largest(found, expected)[0] <= MOST_LOGITS * scale(expected)


def largest(found: Tensor, expected: Tensor) -> tuple[float, int, int]:
    """The largest difference, and the row and column it is in; infinite if a number is not finite."""
    difference = (found - expected).abs().nan_to_num(nan=float("inf"))
    place = int(difference.argmax())
    columns = difference.shape[-1] if difference.dim() > 1 else 1
    return float(difference.flatten()[place]), place // columns, place % columns


def scale(expected: Tensor) -> float:
    """What a tolerance is multiplied by: the largest number, but at least 1."""
    return max(1.0, float(expected.abs().max()))
