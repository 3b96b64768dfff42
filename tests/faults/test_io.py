"""Every call of training, resuming and other commands about files fails once: they go on or end with one line.

After an error the same command goes on to the same bits. See `tests/helpers/io_faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.io_faults import FaultServer
from tests.helpers.io_faults.command_scenarios import verifying
from tests.helpers.io_faults.scenarios import SCENARIOS
from tests.helpers.io_faults.sweep import problems, sweep_and_report
from tests.helpers.io_faults.training_scenarios import resuming_rewarding, rewarding, training_arguments

MORE_THAN = {
    "drawing a graph": 50,
    "generating": 50,
    "reallocating": 50,
    "resuming": 1000,
    "resuming rewarding": 1000,
    "training": 1000,
    "training, saves waited for": 1000,
    "verifying": 50,
}
"""Number of faults that a scenario has, if it is not 100."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_command_with_a_fault(
    servers: list[FaultServer], inputs_of_scenarios: Path, tmp_path: Path, show: Callable[[str], None], name: str
) -> None:
    outcomes = sweep_and_report(servers, SCENARIOS[name](inputs_of_scenarios), tmp_path, show)
    assert len(outcomes) > MORE_THAN.get(name, 100)
    assert not problems(outcomes)


def test_a_check_of_a_whole_run_with_a_fault(
    servers: list[FaultServer], inputs_of_scenarios: Path, tmp_path: Path, show: Callable[[str], None]
) -> None:
    (tmp_path / "checked").mkdir()
    ended = servers[0].run(training_arguments(inputs_of_scenarios, tmp_path / "checked"), [inputs_of_scenarios])
    assert ended.code == 0, ended
    run = (tmp_path / "checked" / "run").resolve()
    outcomes = sweep_and_report(servers, verifying(run), tmp_path, show)
    assert len(outcomes) > 50
    assert not problems(outcomes)


def test_a_run_on_rewards_with_charts_and_a_fault(
    servers: list[FaultServer], inputs_of_scenarios: Path, tmp_path: Path, show: Callable[[str], None]
) -> None:
    scenario = rewarding(inputs_of_scenarios, "loggers=[jsonl,tensorboard]")
    outcomes = sweep_and_report(servers, scenario, tmp_path, show)
    assert len(outcomes) > 1000
    assert not problems(outcomes)


def test_a_resumed_run_on_rewards_without_async_steps_with_a_fault(
    servers: list[FaultServer], inputs_of_scenarios: Path, tmp_path: Path, show: Callable[[str], None]
) -> None:
    scenario = resuming_rewarding(inputs_of_scenarios, "async_steps=0")
    outcomes = sweep_and_report(servers, scenario, tmp_path, show)
    assert len(outcomes) > 1000
    assert not problems(outcomes)
