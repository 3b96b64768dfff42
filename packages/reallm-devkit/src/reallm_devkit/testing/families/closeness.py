"""Comparison of logits up to rounding.

Shapes: T packed tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

LOGITS_TOLERANCE = 2e-5
"""Largest difference of float32 logits, relative to the largest logit if that is above 1. Two orders of summation
differ by about 3e-6; a wrong epsilon, scale or activation by far more than 1e-4."""


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether logits are equal up to rounding."""
    return found.shape == expected.shape and max_difference(found, expected)[0] <= LOGITS_TOLERANCE * tolerance_scale(
        expected
    )


def max_difference(found: Tensor, expected: Tensor) -> tuple[float, int, int]:
    """The largest absolute difference with its row and column; infinite if a number is NaN."""
    difference = (found - expected).abs().nan_to_num(nan=float("inf"))
    index = int(difference.argmax())
    columns = difference.shape[-1] if difference.dim() > 1 else 1
    return float(difference.flatten()[index]), index // columns, index % columns


def tolerance_scale(expected: Tensor) -> float:
    """The factor of a tolerance: the largest absolute value, at least 1."""
    return max(1.0, float(expected.abs().max()))
