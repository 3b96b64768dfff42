"""Encoded rows of a source, in its order, in flat arrays."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from reallm.data.tokenization.encoder import EncodedBatch
from reallm.data.tokenization.sequences import FlatSequences, SequenceBuilder

IDS = "ids"
"""The column with the ids of the samples, as UTF-8 bytes."""


@dataclass(frozen=True)
class TokenStore:
    """The samples that were made of the rows of a source, in the order of the rows.

    Args:
        columns: field -> its values in each sample; and `IDS`.
        row_of_sample: int64 [n], the row that each sample was made of, counted from 0.
        remark_of_row: int32 [R], for each row an index into `remarks`.
        remarks: the different groups of remarks about a row; the first is empty.
    """

    columns: dict[str, FlatSequences]
    row_of_sample: np.ndarray
    remark_of_row: np.ndarray
    remarks: tuple[tuple[str, ...], ...]

    @property
    def n_rows(self) -> int:
        """Number of rows of the source, with those that were dropped."""
        return len(self.remark_of_row)


class StoreBuilder:
    """Collects encoded batches into a `TokenStore` in memory."""

    def __init__(self) -> None:
        self._columns: dict[str, SequenceBuilder] = {IDS: SequenceBuilder(np.dtype(np.uint8))}
        self._row_of_sample = array("q")
        self._remark_of_row = array("i")
        self._remarks: dict[tuple[str, ...], int] = {(): 0}

    def append(self, batch: EncodedBatch) -> None:
        """Append the rows that follow those before."""
        n_rows = len(self._remark_of_row)
        self._row_of_sample.frombytes((np.flatnonzero(batch.is_kept) + n_rows).astype(np.int64).tobytes())
        self._remark_of_row.extend(self._remarks.setdefault(group, len(self._remarks)) for group in batch.remarks)
        ids = [name.encode() for name in batch.ids]
        lengths = np.array([len(name) for name in ids], np.int64)
        self._columns[IDS].extend(np.frombuffer(b"".join(ids), np.uint8), lengths)
        for name, (values, lengths) in batch.fields.items():
            if name not in self._columns:
                self._columns[name] = SequenceBuilder(values.dtype)
            self._columns[name].extend(values, lengths)

    def build(self) -> TokenStore:
        """The store of all batches; nothing can be appended afterwards."""
        return TokenStore(
            {name: column.build() for name, column in self._columns.items()},
            np.frombuffer(self._row_of_sample, np.int64),
            np.frombuffer(self._remark_of_row, np.int32),
            tuple(self._remarks),
        )
