"""An algorithm is called by the name of its command, whatever its configuration class is called."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.sft.config import SFTConfig
from reallm.cli import main
from reallm.experiments.run.runner import run
from reallm.loggers.jsonl import JsonlLogger
from reallm.plugins import registry
from tests.experiments.conftest import Trainer
from tests.helpers.run_folders import write_run

NAME = "my-dpo"


@dataclasses.dataclass(frozen=True)
class MyDPOConfig(SFTConfig):
    """The configuration of a plugin's algorithm."""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed plugin offers the algorithm `my-dpo`."""
    algorithm = dataclasses.replace(registry.get("algorithm", "sft"), config=MyDPOConfig)
    get, names = registry.get, registry.names

    def get_with_plugin(kind: str, name: str) -> Any:
        return algorithm if (kind, name) == ("algorithm", NAME) else get(kind, name)

    monkeypatch.setattr(registry, "get", get_with_plugin)
    monkeypatch.setattr(
        registry, "names", lambda kind: sorted([*names(kind), NAME]) if kind == "algorithm" else names(kind)
    )


def stop_after_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    log = JsonlLogger.log

    def log_and_stop(self: JsonlLogger, at: int, metrics: Mapping[str, float]) -> None:
        log(self, at, metrics)
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonlLogger, "log", log_and_stop)


def test_a_plugins_algorithm_is_resumed_by_the_command_that_is_printed(
    trainer: Trainer, plugin: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trainer.folder)
    monkeypatch.setenv("COLUMNS", "200")
    config = trainer.config()
    arguments = [
        NAME, f"model.path={trainer.checkpoint}", "model.device=cpu", "loggers=[jsonl]",
        f"dataset.train_path={config.dataset.train_path}", "dataset.train_bs_n_seqs=4", "dataset.max_seqlen=64",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        stop_after_step(patch, 1)
        assert main.run(arguments) == 130
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith(f"{NAME}-")
    command = f"reallm {NAME} resume={folder}"
    assert f"to resume: {command}" in capsys.readouterr().out.splitlines()
    assert json.loads((folder / "summary.json").read_text())["algorithm"] == NAME
    assert command in (folder / "summary.html").read_text()

    assert main.run(["runs"]) == 0
    assert f"continue with: {command}" in capsys.readouterr().out.splitlines()

    assert main.run(command.split()[1:]) == 0
    assert f"resuming {folder} after step 1" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def test_a_run_of_another_algorithm_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    folder = write_run(Path("runs/mine"), settings={}, resumable=True, algorithm="dpo")
    assert main.run(["sft", "resume=mine"]) == 2
    message = f"resume=mine is a run of dpo, not of sft; write reallm dpo resume={folder}"
    assert message in " ".join(capsys.readouterr().err.split())


def test_run_from_python_finds_the_name_of_an_installed_algorithm(trainer: Trainer) -> None:
    result = run(trainer.config(max_steps=1), registry.get("algorithm", "sft"))
    assert result.run_dir.name.startswith("sft-")
    assert json.loads((result.run_dir / "summary.json").read_text())["algorithm"] == "sft"


def test_an_algorithm_without_a_name_is_resumed_by_its_key(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.algorithm = dataclasses.replace(trainer.algorithm, description="made in Python")
    stop_after_step(monkeypatch, 1)
    trainer.name = None
    result = trainer.run(trainer.config())
    assert result.run_dir.name.startswith("run-")
    assert f"to resume: resume={result.run_dir}" in trainer.output.splitlines()
