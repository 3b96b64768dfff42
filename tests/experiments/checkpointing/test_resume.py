"""A run that was stopped, however, goes on as if it had not been: the same numbers, the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.experiments.checkpointing.train_state import read_state
from reallm.experiments.runs.folder import RunFolder, has_state
from reallm.loggers.jsonl import JsonlLogger
from tests.experiments.conftest import Trainer
from tests.helpers.hangup import hangup_by_default

CLOCK_AND_MACHINE = ("tokens_per_s", "memory_gib")


def numbers(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run, without those that depend on the machine's mood."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(CLOCK_AND_MACHINE)} for line in lines]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(checkpoint)}/{name}": tensor
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_run(left: Path, right: Path) -> None:
    """Bit for bit: every metric of every step, the model, the optimizer, and what was said at evaluations."""
    assert numbers(left) == numbers(right)
    last = [RunFolder(folder).last_checkpoint for folder in (left, right)]
    assert last[0].resolve().name == last[1].resolve().name
    one, other = tensors(last[0]), tensors(last[1])
    assert one.keys() == other.keys()
    assert any("training_state" in name for name in one)
    for name, tensor in one.items():
        assert torch.equal(*(value.reshape(-1).view(torch.uint8) for value in (tensor, other[name]))), name
    said = [folder / "samples.jsonl" for folder in (left, right)]
    if said[0].exists():
        assert said[0].read_text() == said[1].read_text()


def stop_after(
    monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGINT, metric: str = "train/loss"
) -> None:
    """Send this process a signal once `metric` of `step` is logged."""
    log = JsonlLogger.log

    def log_and_stop(self: JsonlLogger, at: int, metrics: Mapping[str, float]) -> None:
        log(self, at, metrics)
        if at == step and metric in metrics:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JsonlLogger, "log", log_and_stop)


DROPOUT = {"attention_dropout": 0.1}
"""Only with dropout does a random stream matter."""


@pytest.fixture
def with_dropout(trainer: Trainer, tmp_path: Path) -> Trainer:
    folder = tmp_path / "dropout"
    shutil.copytree(trainer.checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | DROPOUT))
    trainer.checkpoint = folder
    return trainer


@pytest.mark.parametrize(
    ("at", "number"),  # within an epoch, where an evaluation was due, in the second epoch
    [(2, signal.SIGINT), (3, signal.SIGTERM), (5, signal.SIGHUP)],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    with_dropout: Trainer, monkeypatch: pytest.MonkeyPatch, at: int, number: signal.Signals
) -> None:
    def config(**changes: Any) -> SFTConfig:
        return with_dropout.config(n_valid=3, epochs=3, **changes)

    whole = with_dropout.run(config(name="whole"))
    with monkeypatch.context() as patch, hangup_by_default():
        stop_after(patch, at, number)
        stopped = with_dropout.run(config(name="stopped"))
    assert stopped.interrupted
    assert f"to resume: reallm sft resume={stopped.run_dir}" in with_dropout.output

    resumed = with_dropout.run(config(name="stopped", resume=str(stopped.run_dir)))
    assert f"resuming {stopped.run_dir} after step {at}" in with_dropout.output
    assert not resumed.interrupted
    assert resumed.steps == 9
    assert resumed.metrics["train/loss"] == whole.metrics["train/loss"]
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_bfloat16_goes_on_from_its_float32_masters(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**changes: Any) -> SFTConfig:
        base = trainer.config(epochs=2)
        return dataclasses.replace(base, model=dataclasses.replace(base.model, dtype="bfloat16"), **changes)

    whole = trainer.run(config(name="whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        trainer.run(config(name="stopped"))
    resumed = trainer.run(config(name="stopped", resume="auto"))
    assert_same_run(whole.run_dir, resumed.run_dir)


@pytest.mark.parametrize("name", ["sgd", "adafactor", "muon"])
def test_every_optimizer_goes_on_bit_for_bit(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = OptimizerConfig(name=name, lr=1e-2, **options)
    whole = trainer.run(trainer.config(epochs=2, name="whole", optimizer=optimizer))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        trainer.run(trainer.config(epochs=2, name="stopped", optimizer=optimizer))
    resumed = trainer.run(trainer.config(epochs=2, name="stopped", resume="auto", optimizer=optimizer))
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_another_optimizer_cannot_go_on(trainer: Trainer) -> None:
    done = trainer.run(trainer.config(name="run", max_steps=1))
    other = trainer.config(name="run", resume=str(done.run_dir), optimizer=OptimizerConfig(name="sgd"))
    with pytest.raises(ConfigError, match=r"^optimizer\.name=sgd cannot change in a resumed run, where it is adamw"):
        trainer.run(other)


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a process of its own that has everything imported already; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def kill_when(child: int, due: Callable[[float], bool]) -> bool:
    """SIGKILL a child once `due(seconds since it began)`; whether it was still there."""
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the child failed with status {status}"
            return False
        if due(time.monotonic() - began):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.0005)


def test_what_was_logged_after_the_last_save_is_forgotten(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(name: str, **changes: Any) -> SFTConfig:
        return trainer.config(n_valid=3, epochs=3, save_every=4, async_save=False, name=name, **changes)

    def killed() -> None:
        stop_after(monkeypatch, 6, signal.SIGKILL)
        trainer.run(config("killed"))

    folder = trainer.folder / "runs" / "killed"
    assert os.WIFSIGNALED(os.waitpid(in_child(killed), 0)[1])
    assert max(line["step"] for line in numbers(folder)) == 6
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')
    whole = trainer.run(config("whole"))
    resumed = trainer.run(config("killed", resume=str(folder)))
    assert f"resuming {folder} after step 4" in trainer.output
    assert_same_run(whole.run_dir, resumed.run_dir)


def moment_to_kill(folder: RunFolder, draw: random.Random) -> Callable[[float], bool]:
    """Some time while the process starts, some time in training, or while a checkpoint is written."""
    kind, delay = draw.choice(("starting", "training", "training", "saving", "saving")), draw.uniform(0.0, 0.3)
    size, since = _size(folder.metrics), list[float]()

    def due(seconds: float) -> bool:
        if kind == "starting":
            return seconds > delay
        if kind == "training" and _size(folder.metrics) == size:
            return False
        if kind == "saving" and not any(path.name.endswith(".reallm-new") for path in _children(folder.checkpoints)):
            return False
        since.append(seconds)
        return seconds - since[0] > (delay if kind == "training" else delay / 30)

    return due


def test_8_kills_at_any_moment_lose_nothing_but_the_steps_since_the_last_save(with_dropout: Trainer) -> None:
    def config(name: str) -> SFTConfig:
        return with_dropout.config(
            n_valid=3, n_rows=24, batch_size=2, epochs=5, save_every=2, eval_generations=1, eval_max_new_tokens=2,
            name=name, resume="auto",
        )  # fmt: skip

    with_dropout.run(config("whole"))
    folder = RunFolder(with_dropout.folder / "runs" / "killed")
    draw = random.Random(0)
    kills = 0
    while kills < 8:  # mostly during one run; a machine that is slow to kill may let it end before
        shutil.rmtree(folder.path, ignore_errors=True)
        saved = 0
        while kill_when(
            in_child(lambda: with_dropout.run(config("killed"))),
            moment_to_kill(folder, draw) if kills < 8 else lambda seconds: False,
        ):
            kills += 1
            steps = folder.saved_steps()
            with_state = [step for step, path in steps.items() if has_state(path)]
            assert max(with_state, default=0) >= saved  # what was saved once is never lost
            saved = max(with_state, default=0)
            for path in steps.values():
                ReaLModel.from_pretrained(path)  # whole, whatever was killed
            if with_state:
                assert read_state(steps[saved])[0].step == saved
        assert_same_run(with_dropout.folder / "runs" / "whole", folder.path)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"step-000058", "step-000060", "last"}


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
