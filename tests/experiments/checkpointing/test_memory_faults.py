"""A sample of `tests/faults/test_memory.py`: two allocations fail once, one of a step and one of a save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.io_faults import FaultServer, has_compiler
from tests.helpers.io_faults.scenarios import make_small_inputs, training
from tests.helpers.io_faults.sweep import Sweep, faults_of, problems


@pytest.mark.skipif(not has_compiler(), reason="needs Linux and cc, which makes the library with the faults")
def test_a_training_that_lacks_memory_ends_with_one_line_or_loses_a_save(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    inputs = make_small_inputs(folder / "inputs")
    with FaultServer() as server:
        sweep = Sweep(server, replace(training(inputs), of_memory=True), folder)
        tried = [
            next(fault for fault in faults_of(sweep.calls) if place in sweep.calls[fault.number - 1].path)
            for place in ("optim/adam.py", "checkpoint/")
        ]
        outcomes = [sweep.try_fault(fault) for fault in tried]
    assert all(outcome.call is not None for outcome in outcomes), "every fault has hit a call"
    assert [outcome.code for outcome in outcomes] == [2, 0], outcomes
    assert not problems(outcomes)
