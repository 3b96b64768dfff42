"""What the demos print at their end: a curve, and a table of what the model said before and after."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from reallm.experiments.reports.terminal import terminal_plot
from reallm.experiments.run.runner import RunResult
from reallm.experiments.runs.metrics import read_curves, smoothed


def show_curve(console: Console, result: RunResult, metric: str) -> None:
    """Draw a metric of a run."""
    curves = read_curves(result.run_dir / "metrics.jsonl")
    curve = smoothed(curves[metric], window=max(1, result.steps // 120))
    console.print(f"\n{metric}", highlight=False)
    console.print(terminal_plot(curve), highlight=False, markup=False, soft_wrap=True)
    console.print()


def last_value(result: RunResult, metric: str) -> float:
    """The last value of a metric of a run."""
    return read_curves(result.run_dir / "metrics.jsonl")[metric][-1][1]


def show_answers(
    console: Console, prompts: Sequence[str], before: Sequence[str], after: Sequence[str], is_right: Sequence[bool]
) -> None:
    """Print a table of prompts and answers, with a mark that says whether the last one is right."""
    table = Table("prompt", "before", "after", "", title="What it says", title_justify="left")
    for prompt, old, new, right in zip(prompts, before, after, is_right, strict=True):
        table.add_row(prompt, _one_line(old, 32), _one_line(new, 56), "✓" if right else "✗")
    console.print(table, highlight=False, markup=False)


def _one_line(text: str, width: int) -> str:
    """Shorten text for a table, with dots for unprintable characters, which untrained models do generate."""
    shown = "".join(char if char.isprintable() and char != "\ufffd" else "·" for char in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"
