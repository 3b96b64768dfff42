"""What is wrong with the settings, files or processes of a job: one line, reported by one rank; all end with code 2."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from reallm.cli import main
from tests.helpers.jobs import CommandResult, make_inputs, sft, side_by_side

ALIKE = "; all processes of a job must have the same settings, packages and files"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("parallel.tp=3", "parallel.tp=3 does not fit the model's 4 query heads; use tp=1 or 2 or 4"),
        ("parallel.tp=8", "parallel.tp=8 does not fit the model's 4 query heads; use tp=1 or 2 or 4"),
        ("parallel.pp=5", "parallel.pp=5 stages are too many for a model of 4 blocks; use pp=4 or less"),
        ("parallel.zero=4", "parallel.zero=4: must be one of 1, 2, 3"),
        ("parallel.dp=0", "parallel.dp=0 must be at least 1"),
        ("parallel.pp=two", "parallel.pp=two: must be a whole number"),
        ("parallel.fsdp=2", "unknown key 'parallel.fsdp'"),
        ("tp=2", "unknown key 'tp'; did you mean 'parallel.tp'?"),
    ],
)
def test_layouts_that_cannot_be(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked, message):
    code = main.run(sft(inputs, tmp_path, asked))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {message}")


def reported(ended: list[CommandResult], tmp_path: Path) -> tuple[int, str]:
    """The rank that reported, and its one line."""
    assert [each.code for each in ended] == [2] * len(ended)
    assert list(tmp_path.glob("runs/*")) == [], "no run was begun"
    ((rank, line),) = [(rank, line) for rank, each in enumerate(ended) for line in each.errors]
    return rank, line


def test_more_processes_than_the_layout_takes(inputs: Path, tmp_path: Path):
    ended = side_by_side(tmp_path, [sft(inputs, tmp_path / "runs", "parallel.tp=2")] * 3)
    assert reported(ended, tmp_path) == (
        0,
        "error: parallel.tp=2 takes 2 processes or a multiple of it, but 3 were started; start as many "
        "(torchrun --nproc-per-node), or change the sizes",
    )


def test_a_checkpoint_of_another_size_than_its_config(inputs: Path, tmp_path: Path):
    shutil.copytree(inputs / "model", tmp_path / "model")
    config = json.loads((inputs / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    arguments = [*sft(inputs, tmp_path / "runs", "parallel.tp=2"), f"model.path={tmp_path / 'model'}"]
    rank, line = reported(side_by_side(tmp_path, [arguments] * 2), tmp_path)
    assert rank == 0
    assert line.startswith("error: ")
    assert line.endswith("shape [48, 32], but config.json asks for [64, 32]; they belong to different models")


def test_a_weight_that_is_nan_in_the_part_of_one_rank(inputs: Path, tmp_path: Path):
    shutil.copytree(inputs / "model", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name][-1, -1] = math.nan
    save_file(tensors, tmp_path / "model/model.safetensors")
    arguments = sft(inputs, tmp_path / "runs", "parallel.dp=2", "parallel.zero=3")
    arguments.append(f"model.path={tmp_path / 'model'}")
    _, line = reported(side_by_side(tmp_path, [arguments] * 2), tmp_path)
    assert line.startswith(
        f"error: rank 1: {tmp_path / 'model/model.safetensors'}: tensor '{name}' has 1 of 1,536 values "
    )


ELSEWHERE = """
import os
import sys
folder = sys.argv.pop()
if os.environ["SLURM_PROCID"] == "1":
    sys.path.insert(0, folder)
    os.chdir(folder)
from reallm.cli.main import main
main()
"""
"""`reallm` in another folder on rank 1, whose packages it sees too: as on a machine that is set up otherwise."""


def elsewhere(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CommandResult]:
    """A job whose rank 1 is in `tmp_path/other`, with files named as those of rank 0."""
    monkeypatch.chdir(inputs)
    arguments = [*sft(inputs, tmp_path / "runs"), "model.path=model", "dataset.train_path=train.jsonl"]
    return side_by_side(tmp_path, [[*arguments, str(tmp_path / "other")]] * 2, ELSEWHERE)


@pytest.fixture
def other(inputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(inputs, tmp_path / "other")
    return tmp_path / "other"


def test_ranks_that_see_other_plugins(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path):
    package = other / "reallm_extra-1.2.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: reallm-extra\nVersion: 1.2\n")
    (package / "entry_points.txt").write_text("[reallm]\ndataset.extra = reallm_extra\n")
    line = f"error: the version of reallm-extra is 1.2 on rank 1 and nothing on rank 0{ALIKE}"
    assert reported(elsewhere(inputs, tmp_path, monkeypatch), tmp_path) == (0, line)


def test_ranks_that_see_other_models(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path):
    config = json.loads((other / "model/config.json").read_text())
    (other / "model/config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    rank, line = reported(elsewhere(inputs, tmp_path, monkeypatch), tmp_path)
    assert rank == 0
    assert line.startswith("error: the content of model/config.json is ")
    assert line.endswith(ALIKE)


def test_ranks_that_see_other_rows(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path):
    rows = (other / "train.jsonl").read_text().splitlines(keepends=True)
    (other / "train.jsonl").write_text("".join(rows[:-1]))
    rank, line = reported(elsewhere(inputs, tmp_path, monkeypatch), tmp_path)
    assert rank == 0
    assert line.startswith("error: the fingerprint of dataset.train_path is ")
    assert line.endswith(ALIKE)
