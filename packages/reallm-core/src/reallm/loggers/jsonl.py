"""Metrics as one JSON object a line, flushed at once: `{"step": 7, "train/loss": 1.25, ...}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonlLogger:
    """Appends to `metrics.jsonl` in the run folder. Numbers that JSON lacks (NaN, infinity) become null."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line."""
        record = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
