"""When a run saves, what it keeps, and what a failed save costs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reallm.checkpoint.checksums import CHECKSUMS
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError, ConfigError, DataError
from reallm.experiments.checkpointing import checkpointer as saving
from reallm.experiments.run.best_metric import BestMetric
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder
from reallm.loggers.jsonl import JsonlLogger
from tests.experiments.conftest import Trainer, records, write_rows


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def with_state(folder: Path) -> list[int]:
    return [step for step, path in RunFolder(folder).saved_steps().items() if (path / TRAINING_STATE).is_dir()]


def test_the_newest_are_kept_and_only_the_last_can_be_resumed_from(trainer: Trainer) -> None:
    result = trainer.run(trainer.config(epochs=3, save_every=2, keep_last=2))
    assert checkpoints(result.run_dir) == {"step-000008", "step-000009", "last"}
    assert with_state(result.run_dir) == [9]
    every = trainer.run(trainer.config(epochs=2, save_every=2, keep_last=None, name="all"))
    assert checkpoints(every.run_dir) == {"step-000002", "step-000004", "step-000006", "last"}


def test_the_tokenizer_outlives_the_checkpoint_that_a_resumed_run_came_from(trainer: Trainer) -> None:
    first = trainer.run(trainer.config(max_steps=2, name="long", keep_last=1))
    again = trainer.config(epochs=4, max_steps=None, name="long", keep_last=1, save_every=1, resume=str(first.run_dir))
    result = trainer.run(again)
    assert "changed: max_steps 2 -> null" in trainer.output
    assert checkpoints(result.run_dir) == {"step-000012", "last"}
    assert result.checkpoint is not None
    assert (result.checkpoint / "tokenizer.json").read_bytes() == (trainer.checkpoint / "tokenizer.json").read_bytes()


def test_minutes_between_saves(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    often = trainer.run(trainer.config(save_every_minutes=1e-9, keep_last=None, name="often"))
    assert checkpoints(often.run_dir) == {"step-000001", "step-000002", "step-000003", "last"}
    seldom = trainer.run(trainer.config(save_every_minutes=None, keep_last=None, name="seldom"))
    assert checkpoints(seldom.run_dir) == {"step-000003", "last"}


@pytest.mark.parametrize(("metric", "mode"), [("eval/loss", "min"), ("eval/loss", "max"), ("eval/accuracy", "max")])
def test_the_best_checkpoint_is_kept(trainer: Trainer, metric: str, mode: str) -> None:
    config = trainer.config(
        n_valid=4, epochs=6, keep_last=1, best_metric=metric, best_mode=mode, optimizer=OptimizerConfig(lr=2e-2)
    )
    result = trainer.run(config)
    evaluations = {line["step"]: line[metric] for line in records(result) if metric in line and line["step"]}
    best = min(evaluations.values()) if mode == "min" else max(evaluations.values())
    step = next(step for step, value in evaluations.items() if value == best)
    assert (result.run_dir / "checkpoints" / "best").resolve().name == f"step-{step:06d}"
    assert checkpoints(result.run_dir) == {f"step-{step:06d}", "step-000018", "last", "best"}
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert summary["best"] == {
        "metric": metric, "value": best, "step": step, "checkpoint": f"checkpoints/step-{step:06d}",
    }  # fmt: skip
    assert f"best {metric}:" in trainer.output


@pytest.mark.parametrize(("losses", "failing", "best"), [({3: 2.0, 6: 1.0}, 3, 6), ({3: 2.0, 6: 1.0, 9: 3.0}, 6, 3)])
def test_a_save_that_fails_late_costs_its_own_evaluation_alone(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, losses: dict[int, float], failing: int, best: int
) -> None:
    write_all, update = saving.Checkpointer._write_all, BestMetric.update
    evaluated = {step: threading.Event() for step in losses}

    def write(self: saving.Checkpointer, save: saving._Save, *others: Any) -> None:
        if save.path.name == f"step-{failing:06d}":
            save.is_read.set()
            evaluated[failing + 3].wait(60)
            raise DataError(f"cannot write {save.path}: Input/output error")
        write_all(self, save, *others)

    def update_with(self: BestMetric, metrics: Mapping[str, float], step: int, checkpoint: str) -> bool:
        is_best = update(self, {"eval/loss": losses.get(step, math.nan)}, step, checkpoint)
        evaluated.get(step, threading.Event()).set()
        return is_best

    monkeypatch.setattr(saving.Checkpointer, "_write_all", write)
    monkeypatch.setattr(BestMetric, "update", update_with)
    config = trainer.config(n_valid=4, epochs=len(losses), save_every=3, keep_last=1, best_metric="eval/loss")
    folder = trainer.run(config).run_dir
    assert f"step-{failing:06d}: Input/output error. Training continues; " in trainer.output
    assert (folder / "checkpoints" / "best").resolve().name == f"step-{best:06d}"
    assert json.loads((folder / "summary.json").read_text())["best"]["step"] == best


def test_an_unknown_best_metric_is_named_before_the_first_step(trainer: Trainer) -> None:
    with pytest.raises(ConfigError, match=r"best_metric=eval/los is not among .* did you mean 'eval/loss'"):
        trainer.run(trainer.config(n_valid=3, best_metric="eval/los"))
    assert "step 1/" not in trainer.output


@pytest.mark.parametrize("key", [{"best_metric": "eval/loss"}, {"eval_every": 2}])
def test_what_needs_validation_data_says_so(trainer: Trainer, key: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(key))}=.* needs validation data; give dataset\.valid_path"):
        trainer.run(trainer.config(**key))


def test_a_warm_up_longer_than_training_is_refused(trainer: Trainer) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_steps=3 must be less than all the steps there are, 3"):
        trainer.run(trainer.config(optimizer=OptimizerConfig(warmup_steps=3)))


def test_training_computes_while_a_save_is_written_and_waits_only_to_change_what_is_read(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is held up until the next step has computed its gradients; the step then waits for the writer."""
    computed = threading.Event()
    wait, write_state = saving.Checkpointer.wait_until_read, saving.write_state

    def wait_until_read(self: saving.Checkpointer) -> None:
        computed.set()  # the step is about to change the parameters
        wait(self)

    def held_up(*args: Any) -> None:
        assert computed.wait(240), "the next step does not compute while the save is written"
        write_state(*args)

    def config(**changes: Any) -> Any:
        return trainer.config(max_steps=2, save_every=1, keep_last=None, **changes)

    plain = trainer.run(config(name="plain", async_save=False))
    with monkeypatch.context() as patch:
        patch.setattr(saving.Checkpointer, "wait_until_read", wait_until_read)
        patch.setattr(saving, "write_state", held_up)
        held = trainer.run(config(name="held"))
    for step in (1, 2):
        left, right = (
            (result.run_dir / "checkpoints" / f"step-{step:06d}" / "model.safetensors").read_bytes()
            for result in (plain, held)
        )
        assert left == right  # nothing of step 2 is in the save of step 1


@contextmanager
def no_file_larger_than(n_bytes: int) -> Iterator[None]:
    """As on a full disk, writing fails in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def on_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    log = JsonlLogger.log

    def log_and_act(self: JsonlLogger, at: int, metrics: Mapping[str, float]) -> None:
        log(self, at, metrics)
        if at == step and "train/loss" in metrics:
            action()

    monkeypatch.setattr(JsonlLogger, "log", log_and_act)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_leaves_the_old_state_and_training_goes_on(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with monkeypatch.context() as patch:
        on_step(patch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard)))
        try:
            with pytest.raises(DataError, match=r"cannot write .*step-000009: .*File too large"):
                trainer.run(trainer.config(epochs=3, save_every=3, name="full", async_save=in_background))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = trainer.folder / "runs" / "full"
    assert "saving failed: cannot write" in trainer.output
    assert "Training continues; " in trainer.output
    assert "step-000003 is still there" in trainer.output
    assert f"to resume: reallm sft resume={folder}" in trainer.output
    assert checkpoints(folder) == {"step-000003", "last"}  # nothing half written
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"

    whole = trainer.run(trainer.config(epochs=3, save_every=3, name="whole"))
    resumed = trainer.run(trainer.config(epochs=3, save_every=3, name="full", resume=str(folder)))
    assert resumed.metrics["train/loss"] == whole.metrics["train/loss"]


# ---------------------------------------------------------------- what cannot be resumed says why


def finished(trainer: Trainer, name: str = "run", **changes: Any) -> Path:
    return trainer.run(trainer.config(max_steps=2, name=name, **changes)).run_dir


def test_a_complete_run_is_left_as_it_is(trainer: Trainer) -> None:
    folder = finished(trainer)
    before = (folder / "metrics.jsonl").read_bytes()
    result = trainer.run(trainer.config(max_steps=2, name="run", resume="auto"))
    assert "is complete; raise epochs or max_steps to train on" in trainer.output
    assert (result.steps, result.interrupted) == (2, False)
    assert result.checkpoint == folder / "checkpoints" / "step-000002"
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_auto_begins_a_run_that_is_not_there_and_finds_one_without_a_name_by_its_settings(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        on_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        first = trainer.run(trainer.config(resume="auto"))
    other = trainer.run(trainer.config(resume="auto", epochs=2))
    assert other.run_dir != first.run_dir
    again = trainer.run(trainer.config(resume="auto"))
    assert again.run_dir == first.run_dir
    assert (again.steps, again.interrupted) == (3, False)
    assert trainer.run(trainer.config(resume="auto")).run_dir not in (first.run_dir, other.run_dir)


def test_a_process_killed_while_it_begins_is_no_obstacle(trainer: Trainer) -> None:
    folder = trainer.folder / "runs" / "begun"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / ".config.yaml.0123456789abcdef.reallm-new").touch()
    assert trainer.run(trainer.config(name="begun", resume="auto")).steps == 3
    (folder / "config.yaml").rename(folder.parent / "config.yaml")
    other = folder.parent / "other"
    other.mkdir()
    (folder.parent / "config.yaml").rename(other / "config.yaml")  # killed before it wrote anything else
    assert trainer.run(trainer.config(resume="auto")).run_dir == other
    assert "nothing is saved there yet, starting from the beginning" in trainer.output


def test_the_checkpoint_that_training_began_with_may_be_gone(trainer: Trainer, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trainer.checkpoint, copy)
    trainer.checkpoint = copy
    folder = finished(trainer)
    shutil.rmtree(copy)
    assert trainer.run(trainer.config(name="run", epochs=2, max_steps=None, resume=str(folder))).steps == 6


def test_what_decides_the_order_of_data_cannot_change(trainer: Trainer) -> None:
    folder = finished(trainer)
    for changes, key in (({"seed": 2}, "seed=2"), ({"batch_size": 2}, r"dataset\.train_bs_n_seqs=2")):
        with pytest.raises(ConfigError, match=rf"{key} cannot change in a resumed run, where it is \d"):
            trainer.run(trainer.config(name="run", resume=str(folder), **changes))


def test_other_samples_under_the_old_name_are_noticed(trainer: Trainer) -> None:
    folder = finished(trainer)
    config = trainer.config(name="run", resume=str(folder))
    write_rows(Path(config.dataset.train_path), range(3, 13))
    with pytest.raises(ConfigError, match="the samples are not those that this run was started with"):
        trainer.run(config)


def test_a_damaged_state_is_named_with_the_way_out(trainer: Trainer) -> None:
    folder = finished(trainer)
    state = folder / "checkpoints" / "step-000002" / TRAINING_STATE / "state.json"
    (state.parent / CHECKSUMS).unlink()
    config = trainer.config(name="run", resume=str(folder))
    damaged = ((state.read_text()[:100], r"\w"), ("{}", "'format' is missing"), ("[]", r"'it' is \[\], not an object"))
    for content, reason in damaged:
        state.write_text(content)
        with pytest.raises(CheckpointError, match=rf"state\.json is damaged \({reason}.*model\.path="):
            trainer.run(config)
    state.write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="written by a later reallm-core; pip install --upgrade"):
        trainer.run(config)


def test_a_truncated_tensor_file_is_named(trainer: Trainer) -> None:
    folder = finished(trainer)
    file = folder / "checkpoints" / "step-000002" / TRAINING_STATE / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    (file.parent.parent / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match=r"training_state/model/model\.safetensors is truncated or damaged"):
        trainer.run(trainer.config(name="run", resume=str(folder)))


def test_a_state_of_another_model_is_named(trainer: Trainer) -> None:
    folder = finished(trainer)
    path = folder / "checkpoints" / "step-000002" / TRAINING_STATE / "state.json"
    content = json.loads(path.read_text())
    content["engines"] = {"actor": {"step": 2, "skipped_steps": 0}}
    path.write_text(json.dumps(content))
    path.parent.joinpath("model").rename(path.parent / "actor")
    (path.parent / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match="does not fit the role 'model'"):
        trainer.run(trainer.config(name="run", resume=str(folder)))


def test_a_run_is_resumed_by_its_name_or_its_newest_checkpoint(trainer: Trainer) -> None:
    folder = finished(trainer, name="first")
    for epochs, resume in ((2, "first"), (3, "first/checkpoints/last")):
        result = trainer.run(trainer.config(epochs=epochs, max_steps=None, resume=resume))
        assert result.run_dir == folder
        assert result.steps == 3 * epochs


def test_a_folder_that_is_no_run_is_named_with_the_nearest(trainer: Trainer) -> None:
    folder = finished(trainer, name="first")
    for path, message in (
        (folder.parent / "fist", "there is no such run; did you mean 'first'"),
        (folder.parent, f"is not a run: {folder.parent} has no config.yaml; write resume={folder}"),
        (folder / "tensorboard", "there is no such folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer.run(trainer.config(resume=str(path)))


def test_two_processes_do_not_train_in_one_folder(trainer: Trainer) -> None:
    folder = finished(trainer)
    with RunFolder(folder).locked(), pytest.raises(ConfigError, match="another process is training in .*run"):
        trainer.run(trainer.config(name="run", epochs=3, resume=str(folder)))


def test_a_resumed_model_is_the_saved_one(trainer: Trainer) -> None:
    folder = finished(trainer)
    saved = ReaLModel.from_pretrained(folder / "checkpoints" / "last")
    config = dataclasses.replace(
        trainer.config(name="run", resume=str(folder), max_steps=3), optimizer=OptimizerConfig(lr=1e-30, warmup_steps=0)
    )
    result = trainer.run(config)
    assert "changed: optimizer.lr 0.001 -> 1e-30" in trainer.output
    assert result.checkpoint is not None
    moved = ReaLModel.from_pretrained(result.checkpoint)
    for (name, before), (_, after) in zip(saved.named_parameters(), moved.named_parameters(), strict=True):
        assert before.equal(after), name
