"""Callbacks: when each method is called, what it sees, what it can ask for, its state, and what a failure does."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reallm.errors import ConfigError, PluginError, UnknownNameError
from reallm.experiments.run import callbacks as module
from reallm.experiments.runs.info import read_run
from reallm.plugins.finder import Plugin
from reallm.plugins.loader import Offer
from reallm.specs import Callback, CallbackSpec, RunView
from tests.experiments.conftest import Trainer, records

PLUGIN = Plugin("my-callbacks", "1.0", "tests.experiments", ("callback.mine",))


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs classes of callbacks by name."""

    def install(**classes: type) -> None:
        offers = {name: Offer("callback", name, CallbackSpec(cls), PLUGIN) for name, cls in classes.items()}
        monkeypatch.setattr(module, "callback_offers", lambda names: {name: offers[name] for name in names})
        for user in ("plan", "trainer"):
            monkeypatch.setattr(f"reallm.experiments.run.{user}.callback_offers", module.callback_offers)

    return install


class Recorder:
    """Remembers its calls; a class attribute, since the run constructs it."""

    calls: list[tuple[Any, ...]]

    def on_train_begin(self, run: RunView) -> None:
        self.calls.append(("begin", run.step))

    def on_step_end(self, run: RunView) -> None:
        self.calls.append(("step", run.step, run.metrics["train/loss"]))

    def on_evaluate(self, run: RunView) -> None:
        self.calls.append(("evaluate", run.step, run.metrics["eval/loss"]))

    def on_save(self, run: RunView, checkpoint: Path) -> None:
        assert (checkpoint / "model.safetensors").is_file()
        self.calls.append(("save", run.step, checkpoint.name))

    def on_train_end(self, run: RunView) -> None:
        self.calls.append(("end", run.step))


@pytest.fixture
def recorder() -> type[Recorder]:
    return type("Mine", (Recorder,), {"calls": []})


def test_methods_are_called_in_order_with_the_metrics_of_the_run(
    trainer: Trainer, offer: Any, recorder: type[Recorder]
) -> None:
    offer(mine=recorder)
    result = trainer.run(trainer.config(n_valid=3, eval_every=2, save_every=2, callbacks=["mine"]))
    losses = {one["step"]: one["train/loss"] for one in records(result) if "train/loss" in one}
    evals = {one["step"]: one["eval/loss"] for one in records(result) if "eval/loss" in one}
    assert recorder.calls == [
        ("begin", 0), ("evaluate", 0, evals[0]),
        ("step", 1, losses[1]),
        ("step", 2, losses[2]), ("evaluate", 2, evals[2]), ("save", 2, "step-000002"),
        ("step", 3, losses[3]), ("evaluate", 3, evals[3]), ("save", 3, "step-000003"),
        ("end", 3),
    ]  # fmt: skip


class Drawing:
    """Draws from the generators that libraries share, when it is made and at every step."""

    drawn: list[list[float]]

    def __init__(self) -> None:
        self.drawn.append([random.random(), np.random.rand(), torch.rand(()).item()])

    def on_step_end(self, run: RunView) -> None:
        self.drawn.append([random.random(), np.random.rand(), torch.rand(()).item()])


def test_what_plugins_draw_from_the_generators_of_libraries_follows_from_the_seed(trainer: Trainer, offer: Any) -> None:
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        one = type("Mine", (Drawing,), {"drawn": []})
        offer(mine=one)
        random.seed(number)  # what was before has no effect
        np.random.seed(number)
        torch.manual_seed(number)
        trainer.run(trainer.config(name=f"run{number}", seed=seed, callbacks=["mine"]))
        drawn.append(one.drawn)
    assert drawn[0] == drawn[1]
    assert not {value for values in drawn[0] for value in values} & {value for values in drawn[2] for value in values}


def test_a_callback_sees_the_run_and_cannot_change_it(trainer: Trainer, offer: Any) -> None:
    seen: dict[str, Any] = {}

    class Look(Callback):
        def on_train_begin(self, run: RunView) -> None:
            seen.update(total=run.total_steps, folder=run.run_dir, rank=(run.rank, run.n_ranks))
            seen["lr"] = run.config["optimizer"]["lr"]
            seen["parameters"] = sum(one.numel() for one in run.model().parameters())
            for name in ("step", "metrics", "config", "run_dir"):
                with pytest.raises(AttributeError):
                    setattr(run, name, None)
            with pytest.raises(TypeError):
                run.metrics["train/loss"] = 0.0  # type: ignore[index]
            with pytest.raises(ConfigError, match="no role 'modle'; did you mean 'model'"):
                run.model("modle")

    offer(look=Look)
    result = trainer.run(trainer.config(callbacks=["look"]))
    assert seen == {
        "total": 3, "folder": result.run_dir, "rank": (0, 1), "lr": 1e-3,
        "parameters": json.loads((result.run_dir / "summary.json").read_text())["parameters"]["model"],
    }  # fmt: skip


def asking(**steps: Callable[[RunView], None]) -> type:
    """A class of callbacks that asks for something after a step: `asking(step2=RunView.request_save)`."""

    class Asking(Callback):
        def on_step_end(self, run: RunView) -> None:
            if f"step{run.step}" in steps:
                steps[f"step{run.step}"](run)

    return Asking


def test_it_can_stop_the_run(trainer: Trainer, offer: Any) -> None:
    offer(mine=asking(step2=lambda run: run.request_stop("the loss is low enough")))
    result = trainer.run(trainer.config(epochs=3, callbacks=["mine"]))
    assert (result.steps, result.interrupted) == (2, False)
    info = read_run(result.run_dir)
    assert (info.status, info.stop_reason) == ("done", "callback 'mine' asked to stop: the loss is low enough")
    assert "ended early: callback 'mine' asked to stop: the loss is low enough" in trainer.output
    assert result.checkpoint is not None
    assert result.checkpoint.name == "step-000002"


def test_it_can_save_and_evaluate(trainer: Trainer, offer: Any) -> None:
    offer(mine=asking(step1=lambda run: run.request_save(), step2=lambda run: run.request_evaluation()))
    result = trainer.run(trainer.config(n_valid=3, keep_last=None, callbacks=["mine"]))
    assert [one["step"] for one in records(result) if "eval/loss" in one] == [0, 2, 3]
    assert {path.name for path in (result.run_dir / "checkpoints").glob("step-*")} == {"step-000001", "step-000003"}


def test_an_evaluation_needs_validation_data(trainer: Trainer, offer: Any) -> None:
    offer(mine=asking(step1=lambda run: run.request_evaluation()))
    with pytest.raises(PluginError, match=r"callback 'mine' of my-callbacks 1\.0 failed in on_step_end: .*valid_path"):
        trainer.run(trainer.config(callbacks=["mine"]))


class Counter(Callback):
    """Counts steps over all processes of a run."""

    counts: list[int]

    def __init__(self) -> None:
        self.n = 0

    def on_step_end(self, run: RunView) -> None:
        self.n += 1
        self.counts.append(self.n)

    def state(self) -> Mapping[str, Any]:
        return {"n": self.n}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.n = state["n"]


def test_its_state_is_saved_and_restored(trainer: Trainer, offer: Any) -> None:
    counter = type("Mine", (Counter,), {"counts": []})
    offer(mine=counter, stop=asking(step2=lambda run: run.request_stop("to be resumed")))
    config = trainer.config(epochs=2, callbacks=["mine", "stop"], name="a")
    part = trainer.run(config)
    result = trainer.run(dataclasses.replace(config, callbacks=["mine"], resume=str(part.run_dir)))
    assert result.steps == 6
    assert counter.counts == [1, 2, 3, 4, 5, 6]


def failing(where: str, result: Any = None) -> type:
    """A class of callbacks one of whose methods raises, or returns what it must not."""

    def method(self: Any, *arguments: Any) -> Any:
        if result is not None:
            return result
        raise ValueError(f"no luck\nin {where}")

    return type("Failing", (), {where: method})


@pytest.mark.parametrize("where", ["on_step_end", "on_evaluate", "on_save", "on_train_end", "state"])
def test_one_that_raises_ends_the_run_after_a_save(trainer: Trainer, offer: Any, where: str) -> None:
    offer(mine=failing(where))
    config = trainer.config(n_valid=3, eval_every=2, epochs=2, save_every=4, callbacks=["mine"], name="a")
    with pytest.raises(PluginError) as error:
        trainer.run(config)
    assert str(error.value) == (
        f"callback 'mine' of my-callbacks 1.0 failed in {where}: ValueError: no luck in {where} "
        f"(run/test_callbacks.py:{_line_of_raise()})"
    )
    run = read_run(trainer.folder / "runs" / "a")
    steps = {"on_step_end": 1, "on_evaluate": 0, "on_save": 4, "on_train_end": 6, "state": 4}[where]
    assert (run.status, run.error, run.steps) == ("failed", str(error.value), steps)
    assert (run.checkpoint is None) == (steps == 0)
    if steps:
        assert "to resume: reallm sft resume=" in trainer.output
        result = trainer.run(dataclasses.replace(config, callbacks=[], resume=str(run.path)))
        assert result.steps == 6


def _line_of_raise() -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if "raise ValueError(f" in line)


def test_a_state_must_be_json(trainer: Trainer, offer: Any) -> None:
    offer(mine=failing("state", {1, 2}))
    with pytest.raises(PluginError, match="failed in state: TypeError: Object of type set is not JSON serializable"):
        trainer.run(trainer.config(callbacks=["mine"]))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (failing("__init__"), "cannot be constructed: ValueError: no luck in __init__"),
        (failing("on_step_ends"), "has a method 'on_step_ends', which is never called; did you mean 'on_step_end'?"),
    ],
)
def test_a_broken_class_is_found_before_anything_is_written(
    trainer: Trainer, offer: Any, cls: type, message: str
) -> None:
    offer(mine=cls)
    with pytest.raises(PluginError) as error:
        trainer.run(trainer.config(callbacks=["mine"]))
    assert str(error.value).startswith("callback 'mine' of my-callbacks 1.0 ")
    assert message in str(error.value)
    assert not list((trainer.folder / "runs").glob("*"))


def test_an_unknown_one_is_found_before_a_folder_is_made(trainer: Trainer) -> None:
    with pytest.raises(UnknownNameError, match="no installed plugin offers the callback 'mine'"):
        trainer.run(trainer.config(callbacks=["mine"]))
    assert not (trainer.folder / "runs").exists()
