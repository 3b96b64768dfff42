"""Shows the progress of work on rows, if it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RowProgress:
    """A progress bar on a terminal and plain lines elsewhere, with rate and remaining time; a context.

    Args:
        description: of the work, for the bar or the line.
        count: function that returns the number of rows, or None if it is not known; called when it is first needed.
        console: where to write; a `quiet` one shows nothing.
        done: number of rows that were done before.
        bar_after: seconds of work after which the bar appears; it disappears when the work is done.
        line_every: seconds between lines.
    """

    def __init__(
        self,
        description: str,
        count: Callable[[], int | None],
        *,
        console: Console,
        done: int = 0,
        bar_after: float = 1.0,
        line_every: float = 10.0,
    ) -> None:
        self._description = description
        self._count = count
        self._console = console
        self._bar_after = bar_after
        self._line_every = line_every
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task(description, total=None, completed=done, rate="")
        self._done = self._done_before = done
        self._n_tokens = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> RowProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    @cached_property
    def total(self) -> int | None:
        """Number of rows, if it is known."""
        return self._count()

    def advance(self, n_rows: int, n_tokens: int = 0) -> None:
        """So many more rows are done; if tokens are counted, the rate is theirs."""
        self._done += n_rows
        self._n_tokens += n_tokens
        now = time.monotonic()
        if self._console.quiet:
            return
        if self._console.is_terminal and now - self._started >= self._bar_after:
            self._bar.update(self._task, completed=self._done, total=self.total, rate=self._rate_text(now))
            if not self._bar.live.is_started:
                self._bar.start()
        elif not self._console.is_terminal and now - self._last_line >= self._line_every:
            self._console.print(self._line(now), highlight=False)
            self._last_line = now

    def _rate(self, now: float) -> float:
        return (self._done - self._done_before) / max(now - self._started, 1e-9)

    def _rate_text(self, now: float) -> str:
        if self._n_tokens:
            return f"{self._n_tokens / max(now - self._started, 1e-9):,.0f} tokens/s"
        return f"{self._rate(now):,.0f} rows/s"

    def _line(self, now: float) -> str:
        if self.total is None:
            return f"{self._description}: {self._done:,} rows, {self._rate_text(now)}"
        line = f"{self._description}: {self._done:,} of {self.total:,} rows, {self._rate_text(now)}"
        rate = self._rate(now)
        if not rate:
            return line
        left = max(0, round((self.total - self._done) / rate))
        return f"{line}, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} remaining"
