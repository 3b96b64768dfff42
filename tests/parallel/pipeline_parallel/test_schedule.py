"""1F1B: in which order stages work on micro-batches."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reallm.parallel.pipeline_parallel import schedule
from reallm.parallel.pipeline_parallel.schedule import Op, forward_only, most_in_flight, one_f_one_b, render, simulate

STAGES, MICRO_BATCHES = st.integers(1, 9), st.integers(0, 30)


def one_f_one_b_of_all(pp, n):
    return [one_f_one_b(stage, pp, n) for stage in range(pp)]


@given(STAGES, MICRO_BATCHES)
def test_every_micro_batch_goes_once_forward_and_once_backward_in_order(pp, n):
    for ops in one_f_one_b_of_all(pp, n):
        assert [op.micro_batch for op in ops if op.kind == "F"] == list(range(n))
        assert [op.micro_batch for op in ops if op.kind == "B"] == list(range(n))


@given(STAGES, MICRO_BATCHES)
def test_a_stage_holds_no_more_micro_batches_than_there_are_stages_from_it_on(pp, n):
    for stage, ops in enumerate(one_f_one_b_of_all(pp, n)):
        assert most_in_flight(ops) == min(pp - stage, n)


@given(STAGES, st.integers(1, 30), st.integers(1, 3), st.integers(1, 3))
def test_stages_never_wait_for_each_other_forever_and_idle_as_little_as_can_be(pp, n, forward, backward):
    begins = simulate(one_f_one_b_of_all(pp, n), forward=forward, backward=backward)
    end = begins[0][Op("B", n - 1)] + backward
    # the last stage has all its work between the way of the first micro-batch down and that of the last one up
    assert end == (n + pp - 1) * (forward + backward)


@given(STAGES, st.integers(1, 30))
def test_evaluation_takes_one_pass_for_each_stage_and_micro_batch(pp, n):
    begins = simulate([forward_only(n)] * pp, forward=3)
    assert begins[-1][Op("F", n - 1)] + 3 == (n + pp - 1) * 3


def test_a_deadlock_names_the_stages():
    waits = [Op("F", 0), Op("B", 0), Op("F", 1), Op("B", 1)]
    needs_both = [Op("F", 0), Op("F", 1), Op("B", 0), Op("B", 1)]
    with pytest.raises(ValueError, match="stage 0 for B0, stage 1 for F1"):
        simulate([waits, needs_both])


def test_the_drawings_in_the_documentation():
    assert doctest.testmod(schedule).failed == 0


def test_columns_are_as_wide_as_the_longest_name():
    *_, line = render(2, 11, backward=1).splitlines()
    assert line.startswith("stage 1  ... F0  B0  F1  B1 ")
    assert "F10 B10" in line
    assert render(2, 0) == "stage 0  \nstage 1  "
