"""The learning rate of every step is that of transformers' schedules, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from reallm.config.lr_schedule import lr_at, warmup_steps
from reallm.config.optimizer import OptimizerConfig

LR = 3e-4
TOTALS = [(1, 0), (3, 0), (3, 1), (7, 6), (10, 3), (300, 9), (1000, 999)]
"""Steps, and those of the warm-up."""


def theirs(make: Any, total: int, **kwargs: Any) -> list[float]:
    """The learning rate that each optimizer step of a training loop with transformers' schedule has."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer, **kwargs)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(total: int, config: OptimizerConfig) -> list[float]:
    return [lr_at(step, total, config) for step in range(1, total + 1)]


@pytest.mark.parametrize(("total", "warmup"), TOTALS)
def test_every_step_equals_transformers(total: int, warmup: int) -> None:
    numbers = {"num_warmup_steps": warmup, "num_training_steps": total}
    for schedule in ("cosine", "linear"):
        make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
        config = OptimizerConfig(lr=LR, schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
        assert ours(total, config) == theirs(make, total, **numbers)
    constant = OptimizerConfig(lr=LR, schedule="constant", warmup_steps=warmup)
    make = transformers.get_constant_schedule_with_warmup
    assert ours(total, constant) == theirs(make, total, num_warmup_steps=warmup)
    floor = OptimizerConfig(lr=LR, warmup_steps=warmup, min_lr_ratio=0.1)
    make = transformers.get_cosine_with_min_lr_schedule_with_warmup
    assert ours(total, floor) == theirs(make, total, **numbers, min_lr_rate=0.1)


def test_it_stays_above_its_floor() -> None:
    rates = ours(1000, OptimizerConfig(lr=2.0, min_lr_ratio=0.1, warmup_ratio=0.1))
    assert rates.index(max(rates)) == 100
    assert min(rates[100:]) > 0.2
    assert rates[-1] == pytest.approx(0.2, rel=1e-4)


def test_a_ratio_is_rounded_up_and_leaves_a_step_to_train() -> None:
    def steps(total: int, ratio: float) -> int:
        return warmup_steps(total, OptimizerConfig(warmup_ratio=ratio))

    assert [steps(100, 0.03), steps(101, 0.03), steps(2, 0.03), steps(1, 0.03)] == [3, 4, 1, 0]
    assert [steps(10, 1.0), steps(10, 0.0), steps(1, 1.0)] == [9, 0, 0]


def test_a_warm_up_begins_at_zero_and_the_last_step_is_one_before_the_end() -> None:
    config = OptimizerConfig(lr=1.0, schedule="linear", warmup_steps=2)
    assert ours(6, config) == [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert lr_at(7, 6, config) == lr_at(9, 6, config) == 0
