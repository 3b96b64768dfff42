"""The report of a dataset: what became of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reallm.errors import NoSamplesError


@dataclass(frozen=True)
class Report:
    """How many rows there are, and how many of them each remark is about.

    Args:
        source: where the rows came from.
        n_rows: number of rows.
        counts: remark -> number of rows: `{"cut to 512 tokens": 3}`.
    """

    source: Any
    n_rows: int
    counts: Mapping[str, int]

    def line(self, result: str) -> str:
        """`"a.jsonl: 9 rows -> 8 samples; 3 cut to 512 tokens; 1 dropped: empty"`, where `result` is "8 samples"."""
        return "; ".join([f"{self._name}: {self.n_rows:,} rows -> {result}", *self._phrases()])

    def no_samples_error(self, remedy: str) -> NoSamplesError:
        """The error for a dataset without any sample, for the caller to raise."""
        return NoSamplesError(
            f"{self._name}: no sample is left of {self.n_rows:,} rows ({'; '.join(self._phrases())}); {remedy}",
            tuple(self.counts),
        )

    @property
    def _name(self) -> str:
        return getattr(self.source, "__qualname__", str(self.source))

    def _phrases(self) -> list[str]:
        return [f"{n:,} {phrase}" for phrase, n in self.counts.items()]
