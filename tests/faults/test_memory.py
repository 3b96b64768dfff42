"""Every place of the code that allocates a tensor fails once for lack of memory: the run goes on or ends with one line.

After the error the same command goes on to the same bits. See `tests/helpers/io_faults`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from tests.helpers.io_faults import FaultServer
from tests.helpers.io_faults.scenarios import SCENARIOS
from tests.helpers.io_faults.sweep import problems, sweep_and_report
from tests.helpers.io_faults.training_scenarios import training
from tests.helpers.tokenizers import tiny_tokenizer

MORE_THAN = {
    "answering": 50,
    "compressed": 50,
    "evaluating": 50,
    "generating": 50,
    "merging": 5,
    "planning": 50,
    "planning as measured": 50,
    "resuming": 300,
    "resuming rewarding": 300,
    "rewarding": 500,
    "scoring ahead": 50,
    "serving": 50,
    "training": 500,
    "training, saves waited for": 500,
}
"""Scenario -> number of faults that it has."""


@pytest.mark.parametrize("name", MORE_THAN)
def test_a_command_that_lacks_memory(
    servers: list[FaultServer], inputs_of_scenarios: Path, tmp_path: Path, show: Callable[[str], None], name: str
) -> None:
    scenario = replace(SCENARIOS[name](inputs_of_scenarios), of_memory=True)
    outcomes = sweep_and_report(servers, scenario, tmp_path, show)
    assert len(outcomes) > MORE_THAN[name]
    assert not problems(outcomes)


def test_a_save_that_lacks_memory(
    servers: list[FaultServer], inputs_of_scenarios: Path, tmp_path: Path, show: Callable[[str], None]
) -> None:
    half = inputs_of_scenarios.parent / "half"  # to save float32 weights as they were loaded takes memory
    shutil.copytree(inputs_of_scenarios, half)
    shutil.rmtree(half / "model")
    model = ReaLModel.from_pretrained(inputs_of_scenarios / "model")
    model.save_pretrained(half / "model", dtype=torch.bfloat16, tokenizer=tiny_tokenizer())
    scenario = replace(training(half, "model.dtype=float32"), of_memory=True)
    outcomes = sweep_and_report(servers, scenario, tmp_path, show)
    assert not problems(outcomes)
    saving = [outcome for outcome in outcomes if outcome.call is not None and "checkpoint/save.py" in outcome.call.path]
    assert saving
