"""Advantages of packed answers, against a loop over each of them."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.rl.gae import gae

LENGTHS = [3, 0, 1, 7, 4]


def by_loop(
    rewards: list[float], values: list[float], bootstrap: float, gamma: float, lam: float, mask: list[bool]
) -> list[float]:
    """Advantages of one answer: from its end, over the tokens of the policy."""
    advantages, following, carried, pending = [0.0] * len(rewards), bootstrap, 0.0, 0.0
    for t in reversed(range(len(rewards))):
        pending += rewards[t]
        if mask[t]:
            carried = pending + gamma * following - values[t] + gamma * lam * carried
            advantages[t], following, pending = carried, values[t], 0.0
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.99, 0.0)])
@pytest.mark.parametrize("share", [None, 0.6])
def test_packed_answers_have_the_advantages_of_each(gamma: float, lam: float, share: float | None) -> None:
    torch.manual_seed(3)
    n = sum(LENGTHS)
    rewards, values = torch.randn(2, n, dtype=torch.float64)
    bootstrap = torch.randn(len(LENGTHS), dtype=torch.float64)
    mask = None if share is None else torch.rand(n) < share
    advantages, returns = gae(rewards, values, torch.tensor(LENGTHS), bootstrap, gamma, lam, mask)
    kept = torch.ones(n, dtype=torch.bool) if mask is None else mask
    columns = (one.split(LENGTHS) for one in (rewards, values, kept))
    expected = [
        value
        for *answer, end in zip(*columns, bootstrap.tolist(), strict=True)
        for value in by_loop(answer[0].tolist(), answer[1].tolist(), end, gamma, lam, answer[2].tolist())
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(returns, torch.where(kept, advantages + values, 0.0))


def test_with_whole_returns_the_values_of_later_tokens_do_not_count() -> None:
    values = torch.tensor([0.5, 7.0, -3.0])
    _, returns = gae(torch.tensor([0.0, 0.0, 2.0]), values, torch.tensor([3]), torch.zeros(1), 1.0, 1.0)
    assert returns.tolist() == [2.0, 2.0, 2.0]


def test_no_answers_have_no_advantages() -> None:
    nothing = torch.zeros(0)
    advantages, returns = gae(nothing, nothing, torch.tensor([0, 0]), torch.ones(2), 1.0, 0.95)
    assert len(advantages) == len(returns) == 0
