"""Logs metrics as TensorBoard event files: `tensorboard --logdir <run folder>`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoardLogger:
    """Writes scalars, and the configuration as text, into `tensorboard/` in the run folder."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._folder = run_dir / "tensorboard"
        self._config = "\n".join(f"    {line}" for line in _lines(config))
        self._resumed_after: int | None = None
        self._writer: SummaryWriter | None = None

    def resume(self, step: int) -> None:
        """Make TensorBoard hide later steps in earlier event files, which are not rewritten."""
        self._resumed_after = step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to the curve of each metric."""
        writer = self._writer or self._open()
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> SummaryWriter:
        _hide_tracebacks_of_threads()
        # Opened by the first point: until then `resume` may still set the step after which earlier files are purged.
        after = self._resumed_after
        self._writer = SummaryWriter(str(self._folder), purge_step=None if after is None else after + 1)
        self._writer.add_text("config", self._config, max(after or 0, 0))
        return self._writer


@cache
def _hide_tracebacks_of_threads() -> None:
    """Let Python not show what ends a thread of TensorBoard's: the next call of its writer raises it."""
    show = threading.excepthook

    def show_others(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            show(args)

    threading.excepthook = show_others


def _lines(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in config.items():
        lines += _lines(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}={value}"]
    return lines
