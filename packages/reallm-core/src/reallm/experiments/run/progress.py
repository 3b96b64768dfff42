"""Shows the progress of training: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reallm.experiments.reports.number_format import duration
from reallm.printable import printable

SECONDS_BETWEEN_LINES = 10.0


def print_line(console: Console, text: str) -> None:
    """Print a line verbatim: neither wrapped nor highlighted, and without interpreting markup."""
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)


class TrainingProgress:
    """Display of loss, reward, learning rate, tokens per second and remaining time of a run of `total_steps`.

    Args:
        console: console on which a bar is drawn if it is a terminal; otherwise lines are printed.
        total_steps: steps of the whole run.
        clock: function that returns the time in seconds, like `time.monotonic`.
    """

    def __init__(self, console: Console, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._total = total_steps
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._last_line = clock()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self._bar.add_task("training", total=total_steps, numbers="")

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` is done, with the metrics of a train call: `reward`, `kl`, `loss`, `lr`, ..."""
        now = self._clock()
        numbers = "  ".join([*_numbers(metrics), *self._remaining(step, now)])
        if self._bar:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif step in (1, self._total) or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._console.print(f"step {step}/{self._total}  {numbers}", highlight=False, soft_wrap=True)

    def _remaining(self, step: int, now: float) -> list[str]:
        """The remaining time, estimated from the second step on: the first includes an evaluation and warming up."""
        if self._first is None:
            self._first = step, now
            return []
        first, since = self._first
        return [f"{duration((now - since) / (step - first) * (self._total - step))} left"]

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Context in which the bar shows another activity than training, such as `saving`."""
        if self._bar:
            self._bar.update(self._task, description=activity)
        try:
            yield
        finally:
            if self._bar:
                self._bar.update(self._task, description="training")

    def echo(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        print_line(self._console, text)


def _numbers(metrics: Mapping[str, float]) -> list[str]:
    formats = {
        "reward": "reward {:.3f}",
        "kl": "kl {:.4f}",
        "completions/mean_length": "length {:.0f}",
        "loss": "loss {:.4f}",
        "lr": "lr {:.2e}",
        "tokens_per_s": "{:,.0f} tokens/s",
    }
    numbers = [text.format(metrics[name]) for name, text in formats.items() if name in metrics]
    skipped = metrics.get("skipped_steps", 0)
    return [*numbers, f"skipped {skipped:.0f}"] if skipped else numbers
