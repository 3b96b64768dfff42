"""Every place of the code that allocates a tensor fails once for lack of memory: the run goes on or ends with one line.

After the error the same command goes on to the same bits. See `tests/helpers/io_faults`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from tests.helpers.io_faults import FaultServer, has_compiler
from tests.helpers.io_faults.more_scenarios import SCENARIOS, make_more_inputs, rewarding
from tests.helpers.io_faults.scenarios import generating, make_small_inputs, resuming, training
from tests.helpers.io_faults.sweep import problems, sweep_and_report
from tests.helpers.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="needs Linux and cc, which makes the library with the faults"
)


@pytest.fixture(scope="module")
def inputs(servers: list[FaultServer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_small_inputs(tmp_path_factory.mktemp("memory").resolve() / "inputs")
    make_more_inputs(servers[0], folder)
    return folder


@pytest.mark.parametrize("async_save", ["true", "false"])
def test_a_training_that_lacks_memory(servers, inputs: Path, tmp_path: Path, async_save: str) -> None:
    scenario = replace(training(inputs, f"async_save={async_save}"), of_memory=True)
    outcomes = sweep_and_report(servers, lambda folder: scenario, tmp_path)
    assert len(outcomes) > 500
    assert not problems(outcomes)


def test_a_save_that_lacks_memory(servers, inputs: Path, tmp_path: Path) -> None:
    half = inputs.parent / "half"  # to save float32 weights as they were loaded takes memory
    shutil.copytree(inputs, half)
    shutil.rmtree(half / "model")
    model = ReaLModel.from_pretrained(inputs / "model")
    model.save_pretrained(half / "model", dtype=torch.bfloat16, tokenizer=tiny_tokenizer())
    scenario = replace(training(half, "model.dtype=float32"), of_memory=True)
    outcomes = sweep_and_report(servers, lambda folder: scenario, tmp_path)
    assert not problems(outcomes)
    saving = [outcome for outcome in outcomes if outcome.call is not None and "checkpoint/save.py" in outcome.call.path]
    assert saving


def test_a_resumed_run_that_lacks_memory(servers, inputs: Path, tmp_path: Path) -> None:
    outcomes = sweep_and_report(
        servers, lambda folder: replace(resuming(servers[0], inputs, folder), of_memory=True), tmp_path
    )
    assert len(outcomes) > 300
    assert not problems(outcomes)


def test_a_run_on_rewards_that_lacks_memory(servers, inputs: Path, tmp_path: Path) -> None:
    outcomes = sweep_and_report(servers, lambda folder: replace(rewarding(inputs), of_memory=True), tmp_path)
    assert len(outcomes) > 500
    assert not problems(outcomes)


@pytest.mark.parametrize("name", ["answering", "evaluating", "merging", "scoring ahead"])
def test_a_command_that_lacks_memory(servers, inputs: Path, tmp_path: Path, name: str) -> None:
    outcomes = sweep_and_report(servers, lambda folder: replace(SCENARIOS[name](inputs), of_memory=True), tmp_path)
    assert len(outcomes) > 50
    assert not problems(outcomes)


def test_a_text_that_lacks_memory(servers, inputs: Path, tmp_path: Path) -> None:
    outcomes = sweep_and_report(servers, lambda folder: replace(generating(inputs), of_memory=True), tmp_path)
    assert len(outcomes) > 50
    assert not problems(outcomes)
