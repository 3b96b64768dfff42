"""Which rows each step trains on: every row once an epoch, in an order that needs no history."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.data.sampler import StepSampler


@settings(deadline=None)
@given(n_rows=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 3))
def test_every_epoch_trains_on_every_row_once(n_rows: int, batch_size: int, seed: int) -> None:
    plan = StepSampler(n_rows, batch_size, epochs=2, max_steps=None, seed=seed)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch + 1
        rows = [row for step in range(first, first + plan.steps_per_epoch) for row in plan.rows(step)]
        assert sorted(rows) == list(range(n_rows))
    assert plan.epoch_after(plan.total_steps) == 2


def test_epochs_are_shuffled_differently_and_steps_need_no_history() -> None:
    plan = StepSampler(100, 100, epochs=3, max_steps=None, seed=1)
    assert plan.rows(1) != plan.rows(2) != sorted(plan.rows(2))
    assert plan.rows(3) == StepSampler(100, 100, epochs=3, max_steps=None, seed=1).rows(3)
    assert plan.rows(1) != StepSampler(100, 100, epochs=3, max_steps=None, seed=2).rows(1)


def test_the_number_of_steps_is_that_of_the_epochs_or_the_limit() -> None:
    assert StepSampler(10, 4, epochs=2, max_steps=None, seed=1).total_steps == 6
    assert StepSampler(10, 4, epochs=2, max_steps=5, seed=1).total_steps == 5
    assert StepSampler(10, 4, epochs=2, max_steps=50, seed=1).total_steps == 6
