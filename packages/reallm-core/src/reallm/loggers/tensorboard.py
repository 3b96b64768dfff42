"""Metrics as TensorBoard event files: `tensorboard --logdir <run folder>`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoardLogger:
    """Writes scalars, and the configuration as text, into `tensorboard/` in the run folder."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {line}" for line in _lines(config)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to the curve of each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


def _lines(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in config.items():
        lines += _lines(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}={value}"]
    return lines
