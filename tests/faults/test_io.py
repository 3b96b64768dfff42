"""Every call of saving, loading, logging and resuming fails once, in turn: the run goes on or ends with one line.

After an error the same command goes on to the same bits. See `tests/helpers/io_faults`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.io_faults import has_compiler
from tests.helpers.io_faults.scenarios import (
    generating,
    make_small_inputs,
    resuming,
    training,
    training_arguments,
    verifying,
)
from tests.helpers.io_faults.sweep import problems, sweep_and_report

pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="needs Linux and cc, which makes the library with the faults"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_inputs(tmp_path_factory.mktemp("io").resolve() / "inputs")


@pytest.mark.parametrize(
    "more", [[], ["async_save=false", "loggers=[jsonl,tensorboard]"]], ids=["background", "waiting"]
)
def test_a_training_with_a_fault(servers, inputs: Path, tmp_path: Path, more: list[str]) -> None:
    outcomes = sweep_and_report(servers, lambda folder: training(inputs, *more), tmp_path)
    assert len(outcomes) > 1000
    assert not problems(outcomes)


def test_a_run_that_is_resumed_with_a_fault(servers, inputs: Path, tmp_path: Path) -> None:
    outcomes = sweep_and_report(servers, lambda folder: resuming(servers[0], inputs, folder), tmp_path)
    assert len(outcomes) > 1000
    assert not problems(outcomes)


def test_text_from_a_checkpoint_in_parts_with_a_fault(servers, inputs: Path, tmp_path: Path) -> None:
    outcomes = sweep_and_report(servers, lambda folder: generating(inputs), tmp_path)
    assert len(outcomes) > 50
    assert not problems(outcomes)


def test_a_check_of_a_run_with_a_fault(servers, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "checked").mkdir()
    ended = servers[0].run(training_arguments(inputs, tmp_path / "checked"), [inputs])
    assert ended.code == 0, ended
    run = (tmp_path / "checked" / "run").resolve()
    outcomes = sweep_and_report(servers, lambda folder: verifying(run), tmp_path)
    assert len(outcomes) > 50
    assert not problems(outcomes)
