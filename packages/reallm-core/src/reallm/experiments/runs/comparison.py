"""Compares runs: rewards and losses over one axis, last and best values of metrics, settings that differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, get_args

from reallm.errors import ConfigError, nearest
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import RunError, RunInfo
from reallm.experiments.runs.metrics import (
    Curve,
    Points,
    along,
    is_evaluation,
    is_loss,
    is_reward,
    read_curves,
    tokens_trained,
)
from reallm.experiments.runs.settings import LOCATION_KEYS, flatten, read_settings, with_optimizer_options

By = Literal["steps", "tokens", "epochs"]
"""The x axis of curves."""

BETTER = {"reward": max, "loss": min, "perplexity": min, "accuracy": max, "accuracies": max}
"""Last part of a metric's name -> which of its values is the best, for metrics that have a best one."""


@dataclass(frozen=True)
class ComparedRun:
    """A run with its curves and settings, and its letter in plots."""

    info: RunInfo
    letter: str
    curves: Mapping[str, Curve]
    settings: Mapping[str, Any] | None
    """Settings by dotted key; None if the folder has no readable `config.yaml`."""


@dataclass(frozen=True)
class Value:
    """A metric of one run: its last value and, for a metric in `BETTER`, its best value with the step."""

    last: float
    best: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs; mappings by run have its letter as key."""

    runs: tuple[ComparedRun, ...]
    without_metrics: tuple[RunInfo, ...]
    """The runs that were named too, but have nothing to compare yet."""
    by: By
    rewards: Mapping[str, Mapping[str, Points]]
    """Metric -> run -> (x, reward), where x is steps, tokens or epochs."""
    losses: Mapping[str, Mapping[str, Points]]
    """As `rewards`."""
    metrics: Mapping[str, Mapping[str, Value]]
    """Metric -> run -> values, for the runs that have the metric."""
    settings: Mapping[str, Mapping[str, Any]]
    """The settings that differ: dotted key -> run -> value; a run without the key is left out."""

    @property
    def plotted(self) -> Mapping[str, Mapping[str, Points]]:
        """The curves that are drawn: rewards, or losses of runs that have none."""
        rewarded = {letter for curves in self.rewards.values() for letter in curves}
        left = {
            name: {letter: points for letter, points in curves.items() if letter not in rewarded}
            for name, curves in self.losses.items()
        }
        return {**self.rewards, **{name: curves for name, curves in left.items() if curves}}


def compare(infos: Sequence[RunInfo], by: str = "steps") -> Comparison:
    """Read and compare the curves and settings of runs; those without metrics are left out.

    Raises:
        RunError: there are fewer than two runs, a run is named twice or has not the metrics that `by` needs, or no run
            has metrics.
    """
    if by not in get_args(By):
        near = nearest(by, get_args(By))
        raise RunError(f"--by {by}: must be steps, tokens or epochs" + (f"; did you mean {near}?" if near else ""))
    if len(infos) < 2:
        raise RunError("there is nothing to compare; name at least two runs: reallm compare RUN RUN")
    seen: set[Path] = set()
    for info in infos:
        if info.path.resolve() in seen:
            raise RunError(f"the run {info.path} is named twice")
        seen.add(info.path.resolve())
    found = [(info, read_curves(RunFolder(info.path).metrics)) for info in infos]
    with_metrics = [(info, curves) for info, curves in found if curves]
    without = tuple(info for info, curves in found if not curves)
    if not with_metrics:
        raise RunError(f"none of these runs has metrics to compare: {', '.join(map(state_text, without))}")
    if len(with_metrics) > len(ascii_uppercase):
        raise RunError(f"{len(with_metrics)} runs are too many to tell apart; compare at most {len(ascii_uppercase)}")
    runs = tuple(
        ComparedRun(info, letter, curves, flat_settings(RunFolder(info.path).config))
        for (info, curves), letter in zip(with_metrics, ascii_uppercase, strict=False)
    )
    rewards, losses = _curves(runs, by, is_reward), _curves(runs, by, is_loss)
    return Comparison(runs, without, by, rewards, losses, _metrics(runs), _differences(runs))  # type: ignore[arg-type]


def state_text(info: RunInfo) -> str:
    """The name of a run with its state and error: `second-try (failed: out of memory)`."""
    return f"{info.name} ({info.status}{f': {info.error}' if info.error else ''})"


def flat_settings(file: Path) -> dict[str, Any] | None:
    """The settings in a `config.yaml` by dotted key, `{"optimizer.lr": 1e-5}`; None if they cannot be read."""
    try:
        return with_optimizer_options(flatten(read_settings(file)))
    except ConfigError:
        return None


def _curves(runs: Sequence[ComparedRun], by: str, is_wanted: Callable[[str], bool]) -> dict[str, dict[str, Points]]:
    """The curves of the metrics whose names are wanted: metric -> run -> (x, value)."""
    axes = {run.letter: _axis(run, by) for run in runs}
    return {
        name: {
            run.letter: [(axes[run.letter](step), value) for step, value in run.curves[name]]
            for run in runs
            if name in run.curves
        }
        for name in filter(is_wanted, _names(runs))
    }


def _axis(run: ComparedRun, by: str) -> Any:
    """Step -> x."""
    if by == "steps":
        return lambda step: step
    progress = tokens_trained(run.curves) if by == "tokens" else run.curves.get("epoch", [])
    if not progress:
        raise RunError(f"--by {by}: the run {run.info.path} has not logged them; use --by steps")
    return along(progress)


def _metrics(runs: Sequence[ComparedRun]) -> dict[str, dict[str, Value]]:
    return {
        name: {run.letter: _value(name, run.curves[name]) for run in runs if name in run.curves}
        for name in _names(runs)
    }


def _names(runs: Sequence[ComparedRun]) -> list[str]:
    """The names of all metrics: rewards first, and otherwise training metrics first."""
    found = dict.fromkeys(name for run in runs for name in run.curves)
    return sorted(found, key=lambda name: (not is_reward(name), is_evaluation(name)))


def _value(name: str, curve: Curve) -> Value:
    better = BETTER.get(name.rpartition("/")[2])
    if better is None:
        return Value(curve[-1][1])
    step, best = better(curve, key=lambda point: point[1])
    return Value(curve[-1][1], best, step)


def _differences(runs: Sequence[ComparedRun]) -> dict[str, dict[str, Any]]:
    known = {run.letter: run.settings for run in runs if run.settings is not None}
    keys = dict.fromkeys(key for settings in known.values() for key in settings if key not in LOCATION_KEYS)
    found = {}
    for key in keys:
        values = {letter: settings[key] for letter, settings in known.items() if key in settings}
        if len(values) < len(known) or len({json.dumps(value, default=str) for value in values.values()}) > 1:
            found[key] = values
    return found
