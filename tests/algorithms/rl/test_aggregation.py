"""What tokens weigh: the mean that is asked for, however answers are ordered or cut."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.rl.aggregation import token_weights

LENGTHS = torch.tensor([3, 1, 0, 4])
GROUPS = torch.tensor([5, 2, 5, 5])
MASK = torch.tensor([True, False, True, True, True, True, False, True])
LOSSES = torch.tensor([1.0, 100.0, 2.0, 3.0, 4.0, 5.0, 100.0, 6.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ("tokens", (1 + 2 + 3 + 4 + 5 + 6) / 6),
        ("answers", (1.5 + 3 + 0 + 5) / 4),
        ("answer_sums", (3 + 3 + 0 + 15) / 4),
        ("longest_answers", (3 + 3 + 0 + 15) / (4 * 10)),
        ("prompts", ((1 + 2 + 4 + 5 + 6) / 5 + 3) / 2),
    ],
)
def test_the_mean(mean, expected):
    weights, norms = token_weights(mean, LENGTHS, GROUPS, MASK, 10)
    assert float((weights * LOSSES).sum() / norms.sum()) == pytest.approx(expected)
    assert weights[~MASK].eq(0).all()
