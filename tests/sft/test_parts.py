"""The parts of a run: the order of data, of calls, progress lines and curves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from reallm.algorithms.executor import execution_order
from reallm.data.sampler import StepSampler
from reallm.errors import PluginError
from reallm.experiments.reports.number_format import duration
from reallm.experiments.reports.png import save_plot
from reallm.experiments.reports.terminal import terminal_plot
from reallm.experiments.run.progress import TrainingProgress
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.metrics import read_curves, smoothed
from reallm.loggers.jsonl import JsonlLogger
from reallm.specs import ModelFunctionCall


@given(n_rows=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 3))
def test_every_epoch_trains_on_every_row_once(n_rows: int, batch_size: int, seed: int) -> None:
    plan = StepSampler(n_rows, batch_size, epochs=2, max_steps=None, seed=seed)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch + 1
        rows = [row for step in range(first, first + plan.steps_per_epoch) for row in plan.rows(step)]
        assert sorted(rows) == list(range(n_rows))
    assert plan.epoch_after(plan.total_steps) == 2


def test_epochs_are_shuffled_differently_and_steps_need_no_history() -> None:
    plan = StepSampler(100, 100, epochs=3, max_steps=None, seed=1)
    assert plan.rows(1) != plan.rows(2) != sorted(plan.rows(2))
    assert plan.rows(3) == StepSampler(100, 100, epochs=3, max_steps=None, seed=1).rows(3)
    assert plan.rows(1) != StepSampler(100, 100, epochs=3, max_steps=None, seed=2).rows(1)


def test_the_number_of_steps_is_that_of_the_epochs_or_the_limit() -> None:
    assert StepSampler(10, 4, epochs=2, max_steps=None, seed=1).total_steps == 6
    assert StepSampler(10, 4, epochs=2, max_steps=5, seed=1).total_steps == 5
    assert StepSampler(10, 4, epochs=2, max_steps=50, seed=1).total_steps == 6


def call(name: str, inputs: str, outputs: str = "") -> ModelFunctionCall:
    return ModelFunctionCall(name, "model", "inference", tuple(inputs.split()), tuple(outputs.split()))


def test_calls_run_after_those_whose_keys_they_read() -> None:
    graph = [call("train", "tokens rewards"), call("score", "tokens", "rewards"), call("write", "prompts", "tokens")]
    assert [one.name for one in execution_order(graph)] == ["write", "score", "train"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ([call("a", "x", "y"), call("b", "y", "x")], "wait for each other"),
        ([call("a", "x", "y"), call("b", "x", "y")], "calls 'a' and 'b' of the algorithm both write 'y'"),
        ([call("a", "x"), call("a", "y")], "two calls of the algorithm are named 'a'"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(graph: list[ModelFunctionCall], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        execution_order(graph)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


METRICS = {"loss": 1.25, "lr": 2e-5, "tokens_per_s": 1234.5, "grad_norm": 0.5}


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    clock, printed = Clock(), io.StringIO()
    with TrainingProgress(Console(file=printed, width=200), 100, clock) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.step(step, METRICS)
    lines = printed.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 1.2500  lr 2.00e-05  1,234 tokens/s"
    assert lines[1] == "step 11/100  loss 1.2500  lr 2.00e-05  1,234 tokens/s  1:29 left"
    assert lines[-1].startswith("step 100/100")
    assert len(lines) == 11


def test_on_a_terminal_there_is_a_bar_with_the_same_numbers() -> None:
    clock, printed = Clock(), io.StringIO()
    console = Console(file=printed, force_terminal=True, width=160)
    with TrainingProgress(console, 4, clock) as progress:
        for step in range(1, 4):
            clock.now += 60.0
            progress.step(step, METRICS)
        with progress.doing("evaluating"):
            progress.say("a line above the bar")
    for expected in ("3/4", "loss 1.2500", "lr 2.00e-05", "1,234 tokens/s", "1:00 left", "a line above the bar"):
        assert expected in printed.getvalue(), expected


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_metrics_survive_numbers_that_json_lacks(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path, {})
    logger.log(1, {"train/loss": 2.0, "train/grad_norm": float("nan")})
    logger.log(2, {"train/loss": float("inf")})
    logger.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "train/loss": 2.0, "train/grad_norm": None}
    assert read_curves(tmp_path / "metrics.jsonl") == {"train/loss": [(1, 2.0)]}


@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_curves_can_be_drawn_from_any_number_of_points(n: int, tmp_path: Path) -> None:
    curve = [(step, 5.0 / step) for step in range(1, n + 1)]
    text = terminal_plot(curve, width=20, height=4)
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[0].lstrip().startswith("5" if n < 40 else "1")  # of many points, neighbours are averaged
    assert lines[-1].endswith(f"step {n}")
    assert any("\u2801" <= char <= "\u28ff" for char in text)
    save_plot({"train/loss": curve, "eval/loss": curve[:1], "train/lr": curve}, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_falling_curve_is_drawn_falling() -> None:
    lines = terminal_plot([(step, 100.0 - step) for step in range(100)], width=10, height=5).splitlines()
    filled = [[char != "\u2800" for char in line.partition("│")[2]] for line in lines[:5]]
    assert [row.index(True) for row in filled] == [0, 2, 4, 6, 8]


def test_smoothing_keeps_means_and_last_steps() -> None:
    assert smoothed([(1, 1.0), (2, 3.0), (3, 5.0)], window=2) == [(2, 2.0), (3, 5.0)]


def test_two_runs_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {RunFolder.create(tmp_path, None, "sft").path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.name.startswith("sft-") for folder in folders)


def test_the_link_to_the_last_checkpoint_moves_on(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run", "sft")
    for step in (1, 2):
        folder.checkpoint(step).mkdir(parents=True)
        folder.point(folder.last_checkpoint, folder.checkpoint(step))
        assert folder.last_checkpoint.resolve() == folder.checkpoint(step).resolve()
