"""Output of `reallm compare`: plots and tables, JSON, or a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reallm.cli.tables import plain
from reallm.errors import ConfigError
from reallm.experiments.reports.number_format import duration, number, short
from reallm.experiments.reports.png import Panel, save_panels
from reallm.experiments.reports.terminal import COLORS, TextCurve, overlay
from reallm.experiments.runs.comparison import BETTER, ComparedRun, Comparison, Value, state_text
from reallm.experiments.runs.metrics import Points, is_evaluation, tokens_trained

OMITTED = frozenset({"epoch", "loss_tokens", "lr", "tokens"})
"""Metrics left out of the table, by the last part of their names: their last value tells nothing about a run."""

X_LABELS = {"steps": "optimizer step", "tokens": "tokens trained", "epochs": "epochs"}


def print_comparison(comparison: Comparison) -> None:
    """Print plots and tables as wide as the terminal, up to 110 columns; a pipe is 80 columns wide."""
    console = Console(highlight=False)
    for run in comparison.runs:
        letter = (f"{run.letter}  ", f"bold {_style(comparison, run.letter)}")
        console.print(Text.assemble(letter, plain(run.info.name)))
    if comparison.without_metrics:
        left_out = ", ".join(map(state_text, comparison.without_metrics))
        console.print(plain(f"left out, no metrics yet: {left_out}"), soft_wrap=True)
    for name, curves in comparison.plotted.items():
        console.print()
        console.print(plain(name, style="bold"))
        console.print(_plot(comparison, curves, min(console.width, 110) - 9), soft_wrap=True)
    console.print()
    console.print(_metrics_table(comparison))
    console.print()
    _show_settings(console, comparison)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The output of `--json`, by the names of the runs. Keys are only ever added."""
    names = {run.letter: run.info.name for run in comparison.runs}

    def by_name(values: Mapping[str, Any], plain: Callable[[Any], Any]) -> dict[str, Any]:
        return {names[letter]: plain(value) for letter, value in values.items()}

    return {
        "by": comparison.by,
        "runs": [run.info.as_json() for run in comparison.runs],
        "without_metrics": [info.as_json() for info in comparison.without_metrics],
        "rewards": {name: by_name(curves, list) for name, curves in comparison.rewards.items()},
        "losses": {name: by_name(curves, list) for name, curves in comparison.losses.items()},
        "metrics": {
            name: by_name(values, lambda value: vars(value).copy()) for name, values in comparison.metrics.items()
        },
        "settings": {
            key: by_name(values, lambda value: json.loads(json.dumps(value, default=str)))
            for key, values in comparison.settings.items()
        },
    }


def save_picture(comparison: Comparison, path: Path) -> None:
    """Draw rewards, and losses of runs without any, into a PNG file.

    Raises:
        ConfigError: no run has either.
        DataError: the file cannot be written.
    """
    if not comparison.plotted:
        raise ConfigError(f"no picture {path}: none of the runs has logged a loss or a reward")
    labels = {run.letter: f"{run.letter}  {run.info.name}" for run in comparison.runs}
    panels = [
        Panel(name, {labels[letter]: points for letter, points in curves.items()}, marked=is_evaluation(name))
        for name, curves in comparison.plotted.items()
    ]
    save_panels(panels, path, x_label=X_LABELS[comparison.by])


def _style(comparison: Comparison, letter: str) -> str:
    return COLORS[[run.letter for run in comparison.runs].index(letter) % len(COLORS)]


def _plot(comparison: Comparison, curves: Mapping[str, Points], width: int) -> Text:
    first = min(points[0][0] for points in curves.values())
    last = max(points[-1][0] for points in curves.values())
    end = {"steps": f"step {last:.0f}", "tokens": f"{short(last)} tokens", "epochs": f"epoch {last:.3g}"}
    drawn = [TextCurve(points, letter, _style(comparison, letter)) for letter, points in curves.items()]
    return overlay(drawn, (short(first), end[comparison.by]), width=max(20, width), height=12)


def _metrics_table(comparison: Comparison) -> Table:
    table = _table("", comparison)
    for title, text in {"state": _state, "steps": _steps, "epochs": _epochs, "tokens": _tokens, "time": _time}.items():
        table.add_row(title, *(plain(text(run)) for run in comparison.runs))
    for name, values in comparison.metrics.items():
        leaf = name.rpartition("/")[2]
        if leaf in OMITTED or (leaf == "skipped_steps" and not any(value.last for value in values.values())):
            continue
        if leaf == "tokens_per_s":
            table.add_row(plain(f"{name}, mean"), *_reduced(comparison, name, lambda curve: sum(curve) / len(curve)))
        elif leaf == "memory_gib":
            table.add_row(plain(f"{name}, highest"), *_reduced(comparison, name, max))
        else:
            table.add_row(plain(name), *_cells(comparison, values, lambda value: value.last, BETTER.get(leaf)))
        if leaf in BETTER and any(value.best != value.last for value in values.values()):
            title = "  lowest, at step" if BETTER[leaf] is min else "  highest, at step"
            table.add_row(title, *_cells(comparison, values, lambda value: value.best, BETTER[leaf], with_step=True))
    return table


def _table(title: str, comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(title, no_wrap=not title)
    for run in comparison.runs:
        table.add_column(plain(f"{run.letter} {run.info.name}", style=_style(comparison, run.letter)), overflow="fold")
    return table


def _cells(
    comparison: Comparison,
    values: Mapping[str, Value],
    number_of: Callable[[Value], float | None],
    better: Callable[[Iterable[float]], float] | None,
    *,
    with_step: bool = False,
) -> list[Text]:
    """A cell for each run; the best one is bold and has a star, unless all are equal."""
    numbers = {letter: found for letter, value in values.items() if (found := number_of(value)) is not None}
    best = better(numbers.values()) if better and len(set(numbers.values())) > 1 else None
    cells = []
    for run in comparison.runs:
        value = numbers.get(run.letter)
        text = "" if value is None else number(value)
        if with_step and value is not None:
            text += f" @{values[run.letter].best_step}"
        is_best = value is not None and value == best
        cells.append(plain(f"{text} *" if is_best else text, style="bold" if is_best else ""))
    return cells


def _reduced(comparison: Comparison, name: str, reduce: Callable[[list[float]], float]) -> list[Text]:
    curves = [[value for _, value in run.curves.get(name, [])] for run in comparison.runs]
    return [plain(number(reduce(curve)) if curve else "") for curve in curves]


def _state(run: ComparedRun) -> str:
    return run.info.status


def _steps(run: ComparedRun) -> str:
    return str(run.info.steps) + ("" if run.info.total_steps is None else f"/{run.info.total_steps}")


def _epochs(run: ComparedRun) -> str:
    return "" if run.info.epochs is None else f"{run.info.epochs:.3g}"


def _tokens(run: ComparedRun) -> str:
    tokens = tokens_trained(run.curves)
    return short(tokens[-1][1]) if tokens else ""


def _time(run: ComparedRun) -> str:
    return "" if run.info.seconds is None else duration(run.info.seconds)


def _show_settings(console: Console, comparison: Comparison) -> None:
    for run in comparison.runs:
        if run.settings is None:
            console.print(plain(f"the settings of {run.letter} are unknown: {run.info.path} has no config.yaml"))
    if comparison.settings:
        table = _table("settings that differ", comparison)
        for key, values in comparison.settings.items():
            cells = (plain(_setting(values[run.letter]) if run.letter in values else "-") for run in comparison.runs)
            table.add_row(plain(key), *cells)
        console.print(table)
    elif sum(run.settings is not None for run in comparison.runs) > 1:
        console.print("no settings differ")


def _setting(value: Any) -> str:
    """A setting's value, as written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
