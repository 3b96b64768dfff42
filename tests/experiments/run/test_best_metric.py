"""The metric whose best checkpoint is kept: its name, early stopping, and resuming in between."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ConfigError
from reallm.experiments.run.best_metric import BestMetric
from reallm.experiments.run.runner import RunResult
from reallm.experiments.runs.info import read_run
from tests.experiments.conftest import Trainer, records

DIVERGES = OptimizerConfig(lr=0.3, schedule="constant", warmup_steps=1)
"""A learning rate that makes the validation loss worse soon."""


def summary_of(result: RunResult) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((result.run_dir / "summary.json").read_text())
    return content


def evaluations(result: RunResult) -> dict[float, float]:
    """Step -> validation loss, without that before the first step."""
    return {one["step"]: one["eval/loss"] for one in records(result) if "eval/loss" in one and one["step"]}


def test_it_counts_evaluations_since_the_best_one() -> None:
    metric = BestMetric("eval/loss", "min", patience=2)
    assert not metric.update({"eval/loss": 0.1}, 0, "before training")
    counts = []
    for step, loss in enumerate([3.0, 2.0, 2.0, 1.5, math.nan], 1):
        metric.update({"eval/loss": loss}, step, f"step-{step}")
        counts.append(metric.evals_without_gain)
    assert counts == [0, 0, 1, 0, 1]
    assert metric.stop_reason is None
    assert not metric.update({"other": 1.0}, 6, "step-6")
    assert metric.stop_reason == "eval/loss has not improved in 2 evaluations since step 4"
    assert metric.best is not None
    assert metric.best.checkpoint == "step-4"


def test_the_highest_value_is_the_best_in_mode_max() -> None:
    metric = BestMetric("eval/accuracy", "max", patience=1)
    assert metric.update({"eval/accuracy": 0.5}, 1, "a")
    assert not metric.update({"eval/accuracy": 0.4}, 2, "b")
    assert metric.stop_reason == "eval/accuracy has not improved in 1 evaluation since step 1"


def test_a_run_ends_when_validation_does_not_improve(trainer: Trainer) -> None:
    result = trainer.run(
        trainer.config(n_valid=4, epochs=20, eval_every=1, optimizer=DIVERGES, stop_after_evals_without_gain=3)
    )
    losses = evaluations(result)
    best = min(losses, key=losses.__getitem__)
    assert result.steps == best + 3 < 60
    assert not result.interrupted
    reason = f"eval/loss has not improved in 3 evaluations since step {best:.0f}"
    assert f"ended early: {reason}\ndone after" in trainer.output
    summary = summary_of(result)
    assert (summary["status"], summary["stop_reason"]) == ("done", reason)
    assert summary["best"]["step"] == best
    assert (result.run_dir / "checkpoints" / "best").resolve().name == f"step-{best:06.0f}"
    assert read_run(result.run_dir).stop_reason == reason
    assert reason in (result.run_dir / "summary.html").read_text()


def test_a_resumed_run_stops_where_the_uninterrupted_one_does(trainer: Trainer) -> None:
    config = trainer.config(
        n_valid=4, epochs=20, eval_every=1, save_every=1, optimizer=DIVERGES, stop_after_evals_without_gain=3, name="a"
    )
    whole = trainer.run(config)
    # ends two evaluations after the best one, as if it had been killed there
    part = trainer.run(dataclasses.replace(config, name="b", stop_after_evals_without_gain=2))
    assert part.steps == whole.steps - 1
    resumed = trainer.run(dataclasses.replace(config, name="b", resume=str(part.run_dir)))
    assert resumed.steps == whole.steps
    assert evaluations(resumed) == evaluations(whole)
    assert summary_of(resumed)["stop_reason"] == summary_of(whole)["stop_reason"]


def test_resuming_a_run_that_ended_early_says_so(trainer: Trainer) -> None:
    config = trainer.config(
        n_valid=4, epochs=20, eval_every=1, optimizer=DIVERGES, stop_after_evals_without_gain=1, name="a"
    )
    result = trainer.run(config)
    again = trainer.run(dataclasses.replace(config, resume=str(result.run_dir)))
    assert again.steps == result.steps
    assert "is complete; it ended early: eval/loss has not improved in 1 evaluation" in trainer.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"best_metric": "eval/los"},
            "best_metric=eval/los is not among the metrics of an evaluation (eval/loss, eval/perplexity, "
            "eval/accuracy, eval/loss_tokens); did you mean 'eval/loss'?",
        ),
        ({"best_metric": "train/loss"}, "(eval/loss, eval/perplexity, "),
    ],
)
def test_a_wrong_name_is_found_before_anything_is_loaded(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("reallm.experiments.run.runner.open_run", _must_not_be_called)
    with pytest.raises(ConfigError) as error:
        trainer.run(trainer.config(n_valid=3, **changes))
    assert message in str(error.value)


def _must_not_be_called(*arguments: Any) -> None:
    raise AssertionError("the folder of the run is made")


class UndeclaredInterface:
    """Declares no metric names; all else is that of SFT."""

    train_step, n_tokens, loss_weight = SFTInterface.train_step, SFTInterface.n_tokens, SFTInterface.loss_weight
    loss, metrics = SFTInterface.loss, SFTInterface.metrics

    def __init__(self, config: Any) -> None:
        pass


def test_without_declared_names_a_wrong_one_is_found_by_the_first_evaluation(trainer: Trainer) -> None:
    trainer.algorithm = dataclasses.replace(trainer.algorithm, interfaces={"model": UndeclaredInterface})
    with pytest.raises(ConfigError, match="best_metric=eval/los is not among .* did you mean 'eval/loss'"):
        trainer.run(trainer.config(n_valid=3, best_metric="eval/los"))
    assert not list(Path(trainer.folder / "runs").glob("*/checkpoints/*"))


def test_early_stopping_needs_validation_data_and_at_least_one_evaluation(trainer: Trainer) -> None:
    with pytest.raises(ConfigError, match="stop_after_evals_without_gain=2 needs validation data"):
        trainer.run(trainer.config(stop_after_evals_without_gain=2))
    with pytest.raises(ConfigError, match="stop_after_evals_without_gain=0 must be at least 1"):
        trainer.config(n_valid=3, stop_after_evals_without_gain=0)
