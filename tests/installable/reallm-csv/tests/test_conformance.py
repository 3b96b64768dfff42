"""All that reallm relies on, checked by its conformance kit."""

import csv
from pathlib import Path

from reallm_devkit import LoggerKit


class TestCsvLogger(LoggerKit):
    logger = "csv"

    def read(self, run_dir: Path) -> dict[int, dict[str, float]]:
        """What the logger has written, for the kit to hold against what it was told."""
        metrics: dict[int, dict[str, float]] = {}
        with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for step, name, value in csv.reader(file):
                metrics.setdefault(int(step), {})[name] = float(value)
        return metrics
