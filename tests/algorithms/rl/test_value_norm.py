"""Running moments of returns."""

from __future__ import annotations

import json
from typing import Literal

import pytest
import torch

from reallm.algorithms.rl.value_norm import ValueNorm

STEPS = [torch.tensor([1.0, 5.0, 3.0]), torch.tensor([10.0]), torch.tensor([-2.0, 4.0])]


def test_averages_over_all_returns_are_those_of_the_returns() -> None:
    norm = ValueNorm("ma", 0.9, 1e-5)
    for step in STEPS:
        norm.update(step)
    every = torch.cat(STEPS).double()
    assert norm.mean == pytest.approx(float(every.mean()))
    assert norm.std == pytest.approx(float(every.std(correction=0)))


def test_moving_averages_are_not_biased_towards_their_start() -> None:
    norm = ValueNorm("exp", 0.9, 1e-5)
    for step in STEPS:
        norm.update(step)
    weights = torch.tensor([0.81, 0.9, 1.0], dtype=torch.float64)
    means, squares = (
        torch.stack([one.double().pow(power).mean() for one in STEPS]) @ weights / weights.sum() for power in (1, 2)
    )
    assert norm.mean == pytest.approx(float(means))
    assert norm.std == pytest.approx(float((squares - means**2).sqrt()))


@pytest.mark.parametrize("kind", ["exp", "ma"])
def test_values_are_shifted_and_scaled_and_back(kind: Literal["exp", "ma"]) -> None:
    norm, values = ValueNorm(kind, 0.9, 1e-5), torch.tensor([3.0, -1.0])
    assert norm.normalize(values).tolist() == values.tolist()  # nothing is known yet
    norm.update(torch.tensor([]))
    assert norm.normalize(values).tolist() == values.tolist()
    norm.update(STEPS[0])
    torch.testing.assert_close(norm.normalize(STEPS[0]).mean(), torch.tensor(0.0))
    torch.testing.assert_close(norm.denormalize(norm.normalize(values)), values)


def test_equal_returns_are_divided_by_the_smallest_standard_deviation() -> None:
    norm = ValueNorm("ma", 0.9, 1e-4)
    norm.update(torch.full((5,), 0.2))
    assert norm.std == pytest.approx(1e-2)


def test_the_state_is_exact() -> None:
    norm, other = ValueNorm("exp", 0.9, 1e-5), ValueNorm("exp", 0.9, 1e-5)
    norm.update(STEPS[0])
    other.load_state(json.loads(json.dumps(norm.state())))
    for one in (norm, other):
        one.update(STEPS[1])
    assert norm.state() == other.state()
