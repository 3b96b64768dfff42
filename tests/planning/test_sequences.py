"""What a rank computes of a workload: micro-batches, and the steps in which it generates."""

from __future__ import annotations

import pytest

from reallm.planning.lengths import Lengths
from reallm.planning.sequences import Sequences
from reallm.planning.workload import Workload

EQUAL = Sequences(Workload(64, Lengths.constant(100), 1, Lengths.constant(300), n_minibatches=4))
MIXED = Sequences(Workload(64, Lengths.constant(10), 1, Lengths.lognormal(100, 1.0, 1000)))


def test_micro_batches_of_an_optimizer_step_fill_the_budget():
    batches = EQUAL.training(2, 1, 1600)
    assert batches.lengths == ((400,) * 4,) * 2
    assert batches.n == 2
    assert EQUAL.training(2, 4, 1600).n == 4  # a pipeline has as many as stages
    assert EQUAL.inference(2, 1, 1600).n == 8


def test_what_is_packed_of_many_sequences_stands_for_all():
    few, many = (Sequences(Workload(n, Lengths.constant(100))) for n in (64, 64_000))
    assert many.training(1000, 1, 400).n == few.training(1, 1, 400).n == 16
    assert many.training(1, 1, 400).n == pytest.approx(16_000)
    assert many.training(1, 1, 400).n_tokens == pytest.approx(6_400_000)


def test_equal_answers_take_as_many_steps_as_they_have_tokens():
    [steps] = EQUAL.generation(2, 256)
    assert steps == (300, 32, pytest.approx(100 + 299 / 2))


def test_the_last_answers_run_alone_and_none_is_lost():
    steps = MIXED.generation(1, 256)
    assert sum(one.n_steps for one in steps) == MIXED.workload.answers.longest
    n_tokens = sum(one.n_steps * one.n_sequences for one in steps)
    assert n_tokens == pytest.approx(MIXED.workload.answers.mean * 64, rel=0.02)
    widths = [one.n_sequences for one in steps]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 1


def test_answers_wait_where_not_all_fit():
    steps = EQUAL.generation(1, 16)
    assert sum(one.n_steps for one in steps) == 4 * 300
    assert max(one.n_sequences for one in steps) == 16
    all_at_once = MIXED.generation(1, 64)
    waves = MIXED.generation(1, 8)
    tokens = [sum(one.n_steps * one.n_sequences for one in steps) for steps in (all_at_once, waves)]
    assert tokens[0] == pytest.approx(tokens[1])
    assert sum(one.n_steps for one in waves) > sum(one.n_steps for one in all_at_once)
