"""Counts what became of the rows of a dataset, for its report."""

from __future__ import annotations

from collections import Counter
from typing import Any

from reallm.errors import DataError


class Report:
    """Counts rows by a phrase that says what happened to them: `report.count("dropped: too long")`."""

    def __init__(self, source: Any, n_rows: int) -> None:
        self._source = getattr(source, "__qualname__", str(source))
        self._n_rows = n_rows
        self._counts: Counter[str] = Counter()

    def count(self, phrase: str) -> None:
        """Count one more row under `phrase`."""
        self._counts[phrase] += 1

    def line(self, result: str) -> str:
        """`"a.jsonl: 9 rows -> 8 samples; 3 cut to 512 tokens; 1 dropped: empty"`, where `result` is "8 samples"."""
        return "; ".join([f"{self._source}: {self._n_rows:,} rows -> {result}", *self._phrases()])

    def no_samples_error(self, remedy: str) -> DataError:
        """The error for a dataset without any sample, for the caller to raise."""
        return DataError(
            f"{self._source}: no sample is left of {self._n_rows:,} rows ({'; '.join(self._phrases())}); {remedy}"
        )

    def _phrases(self) -> list[str]:
        return [f"{n:,} {phrase}" for phrase, n in self._counts.items()]
