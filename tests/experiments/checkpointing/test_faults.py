"""A few of the faults of `tests/faults`: a call that saves, loads, logs or resumes fails once, or an allocation."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.io_faults import Fault, FaultServer, has_compiler
from tests.helpers.io_faults.inputs import make_small_inputs
from tests.helpers.io_faults.sweep import Sweep, faults_of, problems, sweep
from tests.helpers.io_faults.training_scenarios import training

pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="needs Linux and cc, which makes the library with the faults"
)

FAULTS = (
    Fault(1, mode="short", name="read", end="train.jsonl"),
    Fault(1, errno.EINTR, name="fsync", end="model.safetensors"),
    Fault(1, errno.ENOSPC, "torn", "write", "metrics.jsonl"),
    Fault(1, errno.EIO, name="symlink", end=".last"),
    Fault(1, errno.EIO, name="rename", end="step-000004"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_inputs(tmp_path_factory.mktemp("faults").resolve() / "inputs")


def test_a_training_with_a_fault_goes_on_or_ends_with_one_line_and_goes_on_later(
    server: FaultServer, inputs: Path, tmp_path: Path
) -> None:
    # saves in the background would make their calls in no fixed order
    outcomes = sweep([server], training(inputs, "async_save=false"), tmp_path.resolve(), lambda _: FAULTS)
    assert not problems(outcomes), "\n".join(problems(outcomes))
    assert all(outcome.call is not None for outcome in outcomes), "a call was not made"


def test_a_training_that_lacks_memory_for_the_optimizer_ends_with_one_line_and_goes_on_later(
    server: FaultServer, inputs: Path, tmp_path: Path
) -> None:
    cases = Sweep(server, replace(training(inputs, "max_steps=2"), of_memory=True), tmp_path.resolve())
    fault = next(one for one in faults_of(cases.calls) if "optim/adam.py" in cases.calls[one.number - 1].path)
    outcome = cases.try_fault(fault)
    assert outcome.code == 2, outcome
    assert outcome.problem is None, outcome.problem
