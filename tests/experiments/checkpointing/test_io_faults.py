"""A sample of `tests/faults/test_io.py`: calls that save, load, log and resume fail once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.helpers.io_faults import Fault, FaultServer, has_compiler
from tests.helpers.io_faults.scenarios import make_small_inputs, training
from tests.helpers.io_faults.sweep import sweep

N = 6


@pytest.mark.skipif(not has_compiler(), reason="needs Linux and cc, which makes the library with the faults")
def test_a_training_with_a_fault_goes_on_or_ends_with_one_line_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    inputs = make_small_inputs(folder / "inputs")

    def choose(faults: list[Fault]) -> list[Fault]:
        return random.Random(18).sample(faults, N)

    with FaultServer() as server:
        outcomes = sweep([server], lambda _: training(inputs), folder, choose)
    assert len(outcomes) == N
    assert all(outcome.call is not None for outcome in outcomes), "every fault has hit a call"
    problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    assert not problems, "\n".join(problems)
