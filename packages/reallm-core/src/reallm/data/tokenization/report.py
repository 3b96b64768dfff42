"""The report of a dataset: what became of its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from reallm.data.row_sources import Source, source_name
from reallm.errors import NoSamplesError, counted


@dataclass(frozen=True)
class Report:
    """How many rows there are, and how many of them each remark is about.

    Args:
        source: where the rows came from.
        n_rows: number of rows.
        counts: remark -> number of rows: `{"cut to 512 tokens": 3}`.
    """

    source: Source
    n_rows: int
    counts: Mapping[str, int]

    def line(self, result: str) -> str:
        """`"a.jsonl: 9 rows -> 8 samples; 3 cut to 512 tokens; 1 dropped: empty"`, where `result` is "8 samples"."""
        return "; ".join([f"{source_name(self.source)}: {counted(self.n_rows, 'row')} -> {result}", *self._phrases()])

    def no_samples_error(self, remedies: Mapping[str, str]) -> NoSamplesError:
        """The error for a dataset without any sample, for the caller to raise.

        Args:
            remedies: part of a remark -> what to do about it: `{"longer than": "raise max_seqlen"}`.
        """
        rows = f"{counted(self.n_rows, 'row')} ({'; '.join(self._phrases())})"
        chosen = [remedy for part, remedy in remedies.items() if any(part in remark for remark in self.counts)]
        end = f"; {', or '.join(dict.fromkeys(chosen))}" if chosen else ""
        return NoSamplesError(f"{source_name(self.source)}: no sample is left of {rows}{end}", tuple(self.counts))

    def _phrases(self) -> list[str]:
        return [f"{n:,} {_singular(phrase) if n == 1 else phrase}" for phrase, n in self.counts.items()]


def _singular(phrase: str) -> str:
    """`pair dropped` of `pairs dropped`: a remark that is not about rows begins with what it is about."""
    return re.sub(r"^([a-z]+)s ", r"\1 ", phrase)
