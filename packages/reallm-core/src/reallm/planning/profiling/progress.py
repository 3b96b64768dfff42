"""Shows how far measurements are: a bar on a terminal, a line for each quarter elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 4


class ProfileProgress:
    """A progress bar that disappears when all is measured, or lines; a context.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%")
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("measuring", total=1.0)
        self._n_lines = 0

    def __enter__(self) -> ProfileProgress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def advance(self, what: str, share: float) -> None:
        """So much of all measurements is done."""
        if self._console.is_terminal:
            self._bar.update(self._task, completed=share, description=f"measuring {what}")
        elif share * LINES >= self._n_lines + 1:
            self._n_lines = int(share * LINES)
            self._console.print(f"measuring {what}: {share:.0%}", highlight=False)
