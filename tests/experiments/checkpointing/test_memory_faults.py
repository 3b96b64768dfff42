"""A sample of `tests/faults/test_memory.py`: an allocation of the optimizer fails once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.io_faults import FaultServer, has_compiler
from tests.helpers.io_faults.scenarios import make_small_inputs, training
from tests.helpers.io_faults.sweep import Sweep, faults_of


@pytest.mark.skipif(not has_compiler(), reason="needs Linux and cc, which makes the library with the faults")
def test_a_training_that_lacks_memory_ends_with_one_line_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    inputs = make_small_inputs(folder / "inputs")
    with FaultServer() as server:
        sweep = Sweep(server, replace(training(inputs), of_memory=True), folder)
        fault = next(one for one in faults_of(sweep.calls) if "optim/adam.py" in sweep.calls[one.number - 1].path)
        outcome = sweep.try_fault(fault)
    assert outcome.code == 2, outcome
    assert outcome.problem is None, outcome.problem
