"""Iterates over items in batches, and shows progress if that takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reallm.data.datasets import DatasetUtility
from reallm.data.rows import Row

T = TypeVar("T")


def tokenizer_batches(rows: Sequence[Row], util: DatasetUtility) -> Iterator[Sequence[Row]]:
    """`rows` in batches for calls of the tokenizer; only the first data-parallel rank shows progress."""
    return in_batches(rows, 512, "tokenizing", console=Console(stderr=True, quiet=util.dp_rank > 0))


def in_batches(
    items: Sequence[T],
    size: int,
    description: str,
    *,
    console: Console,
    bar_after: float = 1.0,
    line_every: float = 10.0,
) -> Iterator[Sequence[T]]:
    """`items` in batches of `size`, with a progress bar on a terminal and plain lines elsewhere.

    Args:
        items: what to batch.
        size: items in a batch; the last one may be smaller.
        description: of the work, for the bar or the line.
        console: where to write; a `quiet` one shows nothing.
        bar_after: seconds of work after which the bar appears; it disappears when the work is done.
        line_every: seconds between lines.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(description, total=len(items))
    started = last_line = time.monotonic()
    try:
        for first in range(0, len(items), size):
            yield items[first : first + size]
            done, now = min(first + size, len(items)), time.monotonic()
            bar.update(task, completed=done)
            if console.is_terminal and now - started >= bar_after:
                bar.start()
            elif not console.is_terminal and now - last_line >= line_every:
                console.print(f"{description}: {done:,} of {len(items):,}", highlight=False)
                last_line = now
    finally:
        if bar.live.is_started:
            bar.stop()
