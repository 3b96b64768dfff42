"""The most likely tokens, in an order that is the same everywhere."""

from __future__ import annotations

import math

import pytest
import torch

from reallm.generation.truncation import ban, most_likely


@pytest.mark.parametrize("k", [1, 2, 20, 50, 299, 300, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_of_equally_likely_tokens_the_lowest_ids_come_first(dtype, k):
    logits = torch.randn(30, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[7] = 0.0
    logits[8, ::3] = -math.inf
    logits[9] = -math.inf
    logits[10:20] = logits[10:20].mul(4).round()
    values, ids = most_likely(logits, k)
    for row in range(len(logits)):
        expected = sorted(range(300), key=lambda token: (-logits[row, token].item(), token))[:k]
        assert ids[row].tolist() == expected
        assert torch.equal(values[row], logits[row, expected])


def test_banned_tokens():
    logits = torch.arange(8.0).reshape(2, 4)
    assert ban(logits, [(1, 3, 9, -1), ()]).tolist() == [[0, -math.inf, 2, -math.inf], [4, 5, 6, 7]]
    assert logits.isfinite().all()
    assert ban(logits, [(), (4,)]) is logits
