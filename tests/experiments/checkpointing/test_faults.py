"""A few of the faults of `tests/faults/test_io.py`: calls that save, load, log and resume fail once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.helpers.io_faults import Fault, FaultServer, has_compiler
from tests.helpers.io_faults.scenarios import make_small_inputs, training
from tests.helpers.io_faults.sweep import problems, sweep

FAULTS = (
    Fault(1, mode="short", name="read", end="train.jsonl"),
    Fault(1, errno.EINTR, name="fsync", end="model.safetensors"),
    Fault(1, errno.ENOSPC, "torn", "write", "metrics.jsonl"),
    Fault(1, errno.EIO, name="symlink", end=".last"),
    Fault(1, errno.EIO, name="rename", end="step-000004"),
)


@pytest.mark.skipif(not has_compiler(), reason="needs Linux and cc, which makes the library with the faults")
def test_a_training_with_a_fault_goes_on_or_ends_with_one_line_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    inputs = make_small_inputs(folder / "inputs")
    with FaultServer() as server:  # saves in the background would make their calls in no fixed order
        outcomes = sweep([server], lambda *_: training(inputs, "async_save=false"), folder, lambda calls: FAULTS)
    assert not problems(outcomes), "\n".join(problems(outcomes))
    assert all(outcome.call is not None for outcome in outcomes), "a call was not made"
