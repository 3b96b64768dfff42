"""`--dry-run`: the plan of a run is printed, its mistakes are found, and nothing is written."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from reallm.cli.main import run
from reallm.config.args import ModelArgs
from reallm.config.parallel import ParallelArgs
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError, ConfigError, DataError, PluginError
from reallm.experiments.run.dry_run import dry_run
from tests.experiments.conftest import HF_CONFIG, Trainer
from tests.helpers.tokenizers import tiny_tokenizer

Dry = Callable[..., list[str]]


@pytest.fixture
def dry(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Dry:
    """Makes a dry run of a configuration, without loading a model; returns what it prints."""

    def no_model(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run loads no model")

    def lines(**changes: Any) -> list[str]:
        out = io.StringIO()
        config = trainer.config(**changes)
        before = sorted(trainer.folder.rglob("*"))
        with monkeypatch.context() as patch:
            patch.setattr(ReaLModel, "from_pretrained", no_model)
            try:
                dry_run(config, trainer.algorithm, name="sft", console=Console(file=out, width=200))
            finally:
                assert sorted(trainer.folder.rglob("*")) == before
        return out.getvalue().splitlines()

    return lines


def test_the_plan_is_that_of_the_run(dry: Dry, trainer: Trainer) -> None:
    printed = dry(n_valid=5, name="mine")
    trainer.run(trainer.config(n_valid=5, name="mine"))
    of_run = trainer.output.splitlines()
    fixed = [line for line in printed if "is free on" not in line]  # which differs from moment to moment
    assert [line for line in fixed if line not in of_run] == [fixed[-1]]
    assert fixed[0].startswith("model: ")
    assert f"run folder: {trainer.folder / 'runs' / 'mine'}" in fixed
    assert fixed[-1].startswith("first batch: 4 samples, ")
    assert fixed[-1].endswith(" of them trained, packed into 1 micro-batch")


def test_a_run_of_several_processes_is_planned_by_one(dry: Dry) -> None:
    lines = dry(parallel=ParallelArgs(dp=2, tp=2, zero=2))
    assert lines[0].endswith(" float32 on cpu, dp=2 tp=2 on 4 processes, ZeRO stage 2")
    assert any(line.startswith("memory of each process: ") for line in lines)
    assert dry(parallel=ParallelArgs(pp=2))[0].endswith(" float32 on cpu, pp=2 on 2 processes")
    with pytest.raises(ConfigError, match=r"^parallel\.tp=3 does not fit "):
        dry(parallel=ParallelArgs(tp=3))


def test_a_run_to_resume_is_planned_from_its_step(dry: Dry, trainer: Trainer) -> None:
    trainer.run(trainer.config(max_steps=2, name="mine"))
    lines = dry(max_steps=3, resume="mine")
    assert lines[0].endswith("runs/mine after step 2")
    assert lines[-1].startswith("first batch: 2 samples, ")  # of step 3, the last of the epoch
    assert dry(max_steps=2, resume="mine") == [
        f"{trainer.folder / 'runs' / 'mine'} is complete; raise epochs or max_steps to train on"
    ]


def test_headers_of_checkpoints_are_compared_with_their_configuration(dry: Dry, trainer: Trainer) -> None:
    folder = trainer.folder / "other"
    shutil.copytree(trainer.checkpoint, folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "intermediate_size": 80}))
    with pytest.raises(CheckpointError, match="they belong to different models"):
        dry(model=ModelArgs(path=str(folder), device="cpu"))


def test_weights_that_are_not_finite_are_found(dry: Dry, trainer: Trainer) -> None:
    folder = trainer.folder / "damaged"
    shutil.copytree(trainer.checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 3] = math.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight' has 1 of 6,144 values that are NaN"):
        dry(model=ModelArgs(path=str(folder), device="cpu"))


def test_the_hub_is_asked_as_before_a_run(dry: Dry) -> None:
    with pytest.raises(ConfigError, match="push_to_hub=mine: must name a repository as owner/name"):
        dry(push_to_hub="mine")


def test_a_callback_that_nobody_offers_is_found(dry: Dry) -> None:
    with pytest.raises(PluginError, match="callback 'nobody'"):
        dry(callbacks=["nobody"])


def test_tokens_that_the_model_does_not_have_are_found(dry: Dry, trainer: Trainer) -> None:
    folder = trainer.folder / "small"
    ReaLModel.from_llama({**HF_CONFIG, "vocab_size": 100}, seed=5).save_pretrained(folder, tokenizer=tiny_tokenizer())
    small = ModelArgs(path=str(folder), device="cpu")
    with pytest.raises(DataError, match=r"the first batch has token \d+, but the model of model has only 100; "):
        dry(model=small)
    n_tokens = max(tiny_tokenizer().get_vocab().values()) + 1
    (model, *_) = dry(model=dataclasses.replace(small, resize_vocab=True))
    assert f" {n_parameters(n_tokens):,} parameters" in model


def n_parameters(vocab_size: int) -> int:
    model = ReaLModel.from_llama({**HF_CONFIG, "vocab_size": vocab_size}, seed=5)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_command_ends_with_how_to_start(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trainer.folder)
    rows = trainer.config().dataset.train_path
    arguments = [f"model.path={trainer.checkpoint}", "model.device=cpu", f"dataset.train_path={rows}", "name=a b"]
    assert run(["sft", *arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == (
        "dry run: everything checks out, and nothing was trained or written; to start: "
        f"reallm sft {' '.join(arguments[:-1])} 'name=a b'"
    )
    assert run(["sft", *arguments, "--dry-run", "epochs=0"]) == 2
    assert capsys.readouterr().err == "error: epochs=0 must be at least 1\n"
    assert not Path("runs").exists()


def test_of_a_job_only_the_first_process_prints(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = trainer.config().dataset.train_path
    arguments = ["sft", f"model.path={trainer.checkpoint}", f"dataset.train_path={rows}", "--dry-run"]
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}
    for name, value in {**job, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run(arguments) == 0
    assert capsys.readouterr().out == ""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert run(arguments) == 0
    assert "dp=2 on 2 processes, ZeRO stage 1" in capsys.readouterr().out


def test_validation_rows_longer_than_the_model_is_made_for_are_warned_of(trainer: Trainer) -> None:
    config = trainer.config(n_valid=2)
    assert config.dataset.valid_path is not None
    with Path(config.dataset.valid_path).open("a") as file:
        file.write(json.dumps({"prompt": "a", "answer": "sea " * 400}) + "\n")
    config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, max_seqlen=1000))
    out = io.StringIO()
    dry_run(config, trainer.algorithm, name="sft", console=Console(file=out, width=10_000))
    assert "warning: 1 of 3 validation samples has more than the 256 tokens that" in out.getvalue()
