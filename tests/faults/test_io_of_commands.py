"""As `test_io.py`, of what else has input and output of its own: answers and rewards, preferences, adapters, pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.io_faults import FaultServer, has_compiler
from tests.helpers.io_faults.more_scenarios import SCENARIOS, make_more_inputs, resuming_rewarding, rewarding
from tests.helpers.io_faults.scenarios import make_small_inputs
from tests.helpers.io_faults.sweep import problems, sweep_and_report

pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="needs Linux and cc, which makes the library with the faults"
)


@pytest.fixture(scope="module")
def inputs(servers: list[FaultServer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_small_inputs(tmp_path_factory.mktemp("io").resolve() / "inputs")
    make_more_inputs(servers[0], folder)
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_command_with_a_fault(servers, inputs: Path, tmp_path: Path, name: str) -> None:
    outcomes = sweep_and_report(servers, lambda folder: SCENARIOS[name](inputs), tmp_path)
    assert len(outcomes) > 100
    assert not problems(outcomes)


def test_a_run_on_rewards_with_a_fault(servers, inputs: Path, tmp_path: Path) -> None:
    outcomes = sweep_and_report(servers, lambda folder: rewarding(inputs, "loggers=[jsonl,tensorboard]"), tmp_path)
    assert len(outcomes) > 1000
    assert not problems(outcomes)


@pytest.mark.parametrize("async_steps", [0, 1])
def test_a_resumed_run_on_rewards_with_a_fault(servers, inputs: Path, tmp_path: Path, async_steps: int) -> None:
    more = f"async_steps={async_steps}"
    outcomes = sweep_and_report(servers, lambda folder: resuming_rewarding(servers[0], inputs, folder, more), tmp_path)
    assert len(outcomes) > 1000
    assert not problems(outcomes)
