"""Checkpoints, runs and batches that reallm 0.1 has written are read as it would read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reallm import NamedArray, ReaLModel
from reallm.cli.main import run
from reallm.data.serialization import load
from reallm.experiments.runs.info import read_run
from reallm.experiments.runs.metrics import read_curves

FILES = Path(__file__).with_name("written_by_0_1")
RUNS = ("alone", "two-processes")
TOLERANCE = 1e-5
"""Relative, for losses of float32 models on other machines. With an optimizer that had forgotten its state the last of
them would differ by 1e-2."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of what was written."""
    shutil.copytree(FILES, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_has_the_same_tensors(folder: Path, name: str) -> None:
    checkpoint = folder / "runs" / name / "checkpoints" / "last"
    ReaLModel.from_pretrained(checkpoint).save_pretrained(folder / "again")
    written, again = weights(checkpoint), weights(folder / "again")
    assert again.keys() == written.keys()
    assert len(written) == 20
    assert all(torch.equal(again[name], tensor) for name, tensor in written.items())
    assert json.loads((folder / "again/config.json").read_text()) == json.loads(
        (checkpoint / "config.json").read_text()
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_with_the_losses_that_0_1_had(folder: Path, name: str) -> None:
    assert run(["sft", f"resume=runs/{name}", "max_steps=6", "parallel.dp=1"]) == 0
    curves = read_curves(folder / "runs" / name / "metrics.jsonl")
    for metric, losses in json.loads((folder / "losses.json").read_text())[name].items():
        assert [loss for step, loss in curves[metric] if step > 3] == pytest.approx(losses, rel=TOLERANCE), metric
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]


def test_runs_are_listed_and_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs"]) == 0
    rows = {line.split()[0]: line.split()[1:5] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows == {name: ["done", "3/3", "5.861", "5.795"] for name in RUNS}
    assert run(["compare", *RUNS, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert [one["eval_loss"] for one in compared["runs"]] == pytest.approx([5.795017443205181, 5.795017142044871])
    assert compared["settings"]["parallel.dp"] == {"alone": None, "two-processes": 2}


@pytest.mark.parametrize("name", RUNS)
def test_everything_in_a_summary_is_known(folder: Path, name: str) -> None:
    found = read_run(folder / "runs" / name)
    assert (found.status, found.algorithm, found.steps, found.total_steps) == ("done", "sft", 3, 3)
    assert (found.train_samples, found.valid_samples, found.parameters) == (12, 3, {"model": 4264})
    assert found.checkpoint == folder / "runs" / name / "checkpoints" / "step-000003"


def test_a_batch_is_as_it_was_saved() -> None:
    batch = load(FILES / "batch.safetensors")
    rewards = torch.tensor([0.5, -1.25], dtype=torch.bfloat16)
    nested = NamedArray(mask=torch.tensor([True, False, True]), scores=np.array([1.5, 2.5]))
    expected = NamedArray(input_ids=torch.arange(7), rewards=rewards, values=None, nested=nested)
    assert batch == expected.with_metadata(seqlens={"input_ids": [[4], [3]], "rewards": [[1], [1]]}, ids=["a", "b"])


def test_settings_that_0_1_did_not_have_count_as_unchanged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sft", "resume=runs/alone", "max_steps=4"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("changed: ")] == ["changed: max_steps 3 -> 4"]
