"""All that reallm relies on, checked by its conformance kit."""

import csv
from pathlib import Path

from reallm_devkit import LoggerKit


class TestCsvLogger(LoggerKit):
    logger = "csv"

    def read(self, run_dir: Path) -> dict[int, dict[str, float]]:
        """The logged values, which the kit compares with the values that it logged."""
        metrics: dict[int, dict[str, float]] = {}
        with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for step, name, value in csv.reader(file):
                metrics.setdefault(int(step), {})[name] = float(value)
        return metrics
