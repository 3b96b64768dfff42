"""The logger `csv`."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm.atomic_files import atomic_write


class CsvLogger:
    """Metrics in `metrics.csv` of the run folder: a line `step,name,value` for each."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.path = run_dir / "metrics.csv"
        self._open()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line for each metric; they are in the file when this returns."""
        self._rows.writerows((step, name, value) for name, value in metrics.items())
        self._file.flush()

    def resume(self, step: int) -> None:
        """Drop what was logged of later steps, and a last line that was cut off."""
        self.close()
        with self.path.open(encoding="utf-8", newline="\n") as file:
            lines = [line for line in file if line.endswith("\n")]
        with atomic_write(self.path) as temporary:
            kept = [line for line in lines if int(line.partition(",")[0]) <= step]
            temporary.write_text("".join(kept), encoding="utf-8", newline="\n")
        self._open()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
