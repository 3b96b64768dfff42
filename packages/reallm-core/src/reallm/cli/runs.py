"""`reallm runs`: lists the runs in a folder, with commands to resume the ones that ended early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from reallm.experiments.runs.info import RunInfo

COLORS = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "red", "killed": "red"}
SHOWN_HINTS = 5
NUMBERS = ("Reward", "Eval reward", "Loss", "Eval loss")
"""Columns that are left out if no run has them."""


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that holds run folders, or one run by name or path.")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the runs in a folder: state, steps, losses or rewards.

    \b
      reallm runs                   those in runs/, newest first
      reallm runs experiments/may   those of another folder
      reallm runs first-try         a run in runs/
    """
    from reallm.errors import did_you_mean
    from reallm.experiments.runs.files import is_run
    from reallm.experiments.runs.info import RunError, list_runs, read_run, run_folders

    default = Path("runs")
    if folder == default or (folder.is_dir() and not is_run(folder)):
        found = list_runs(folder)
    elif is_run(folder):
        found = [read_run(folder)]
    elif is_run(default / folder):
        found = [read_run(default / folder, name=str(folder))]
    else:
        hint = did_you_mean(str(folder), run_folders(default))
        raise RunError(f"{folder} is neither a folder nor a run in {default}{hint}")
    if as_json:
        typer.echo(json.dumps([run.as_json() for run in found], indent=2))
    elif found:
        _show(found)
    else:
        typer.echo(f"no runs in {folder} yet; `reallm demo` makes one, `reallm sft --help` says how to make your own")


def _show(found: list[RunInfo]) -> None:
    """Print the table as wide as the terminal; a pipe is 80 columns wide."""
    from rich.console import Console
    from rich.table import Table

    from reallm.cli.tables import plain

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    rows = list(map(row, found))
    columns = [title for title in rows[0] if title not in NUMBERS or any(each[title] for each in rows)]
    for title in columns:
        is_text = title in ("Run", "State", "Started")
        table.add_column(
            title,
            justify="left" if is_text else "right",
            no_wrap=title != "Run",
            overflow="fold" if title == "Run" else "ellipsis",
        )
    for each in rows:
        table.add_row(*(plain(each[title], style=COLORS[each[title]] if title == "State" else "") for title in columns))
    console.print(table)
    _show_hints(console, found)


def row(run: RunInfo) -> dict[str, str]:
    """Columns of a run as text, empty if unknown. A run that is trained on rewards shows these, and no losses."""
    from reallm.experiments.reports.number_format import duration, number

    is_rewarded = run.reward is not None or run.eval_reward is not None
    losses = (None, None) if is_rewarded else (run.loss, run.eval_loss)
    numbers = dict(zip(NUMBERS, (run.reward, run.eval_reward, *losses), strict=True))
    return {
        "Run": run.name,
        "State": run.status,
        "Steps": str(run.steps) if run.total_steps is None else f"{run.steps}/{run.total_steps}",
        **{title: "" if value is None else number(value) for title, value in numbers.items()},
        "Started": "" if run.started is None else _day(run),
        "Time": "" if run.seconds is None else duration(run.seconds),
    }


def _day(run: RunInfo) -> str:
    """Start of a run: `11-24 14:00`, or the date if it was in another year."""
    from datetime import datetime

    assert run.started is not None
    this_year = run.started.year == datetime.now().year
    return f"{run.started:%m-%d %H:%M}" if this_year else f"{run.started:%Y-%m-%d}"


def _show_hints(console: Console, found: list[RunInfo]) -> None:
    """Print the errors of failed runs and commands to resume, each in one unwrapped line that can be copied."""
    from reallm.cli.tables import plain

    failed = [plain(f"{run.name} failed: {run.error}") for run in found if run.status == "failed" and run.error]
    early = [plain(f"continue with: {run.resume_command}") for run in found if run.resume_command]
    for lines in (failed, early):
        if lines:
            console.print()
        for line in lines[:SHOWN_HINTS]:
            console.print(line, soft_wrap=True)
        if len(lines) > SHOWN_HINTS:
            console.print(f"and {len(lines) - SHOWN_HINTS} more")
