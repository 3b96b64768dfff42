"""A few of the faults of `tests/faults/test_io.py`: calls that save, load, log and resume fail once."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.io_faults import Call, Fault, FaultServer, has_compiler
from tests.helpers.io_faults.scenarios import make_small_inputs, training
from tests.helpers.io_faults.sweep import problems, sweep

FAULTS = (
    ("read", "train.jsonl", Fault(0, mode="short")),
    ("fsync", "model.safetensors", Fault(0, errno.EINTR)),
    ("write", "metrics.jsonl", Fault(0, errno.ENOSPC, "torn")),
    ("symlink", ".last", Fault(0, errno.EIO)),
    ("rename", "step-000004", Fault(0, errno.EIO)),
)
"""Name of a call, end of its path, and how the first such call fails."""


def chosen(calls: Sequence[Call]) -> list[Fault]:
    found = []
    for name, end, fault in FAULTS:
        number = next(i for i, call in enumerate(calls, 1) if call.name == name and call.path.endswith(end))
        found.append(Fault(number, fault.error, fault.mode, name))
    return found


@pytest.mark.skipif(not has_compiler(), reason="needs Linux and cc, which makes the library with the faults")
def test_a_training_with_a_fault_goes_on_or_ends_with_one_line_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    inputs = make_small_inputs(folder / "inputs")
    with FaultServer() as server:  # saves in the background would make their calls in no fixed order
        outcomes = sweep([server], lambda *_: training(inputs, "async_save=false"), folder, chosen)
    assert not problems(outcomes), "\n".join(problems(outcomes))
    hit = [(outcome.call.name, Path(outcome.call.path).name) for outcome in outcomes if outcome.call is not None]
    assert hit == [(name, end) for name, end, _ in FAULTS]
