"""The samples of a dataset: the encoded rows of a source, shuffled by the seed, of one data-parallel rank."""

from __future__ import annotations

from collections import Counter

import numpy as np

from reallm.data.datasets import DatasetUtility
from reallm.data.row_sources import Source
from reallm.data.rows import read_rows
from reallm.data.tokenization.encoder import RowEncoder, encode_batch
from reallm.data.tokenization.progress import tokenizer_batches
from reallm.data.tokenization.report import Report
from reallm.data.tokenization.store import IDS, StoreBuilder, TokenStore


class TokenizedRows:
    """The samples of one data-parallel rank, in the order of `DatasetUtility.shard`; pickles as plain arrays.

    Args:
        store: the samples of all rows.
        util: seed and ranks.
        source: where the rows came from, for the report.
    """

    def __init__(self, store: TokenStore, util: DatasetUtility, source: Source) -> None:
        rows = np.array(util.shard(range(store.n_rows)), np.int64)
        sample_of_row = np.full(store.n_rows, -1, np.int64)
        sample_of_row[store.row_of_sample] = np.arange(len(store.row_of_sample))
        samples = sample_of_row[rows]
        self._columns = store.columns
        self._samples = samples[samples >= 0]
        counts: Counter[str] = Counter()
        for group, n in zip(*np.unique(store.remark_of_row[rows], return_counts=True), strict=True):
            for remark in store.remarks[group]:
                counts[remark] += int(n)
        self._report = Report(source, len(rows), counts)

    def __len__(self) -> int:
        return len(self._samples)

    def id(self, i: int) -> str:
        """The id of the row that sample `i` was made of."""
        return self._columns[IDS][self._index(i)].tobytes().decode()

    def field(self, name: str, i: int) -> np.ndarray:
        """A field of sample `i`, [L]; read-only."""
        return self._columns[name][self._index(i)]

    def n_elements(self, name: str) -> int:
        """Number of elements of a field in all samples."""
        return int(np.diff(self._columns[name].offsets)[self._samples].sum())

    def n_true(self, name: str) -> int:
        """Number of true elements of a bool field in all samples."""
        column = self._columns[name]
        return int(np.add.reduceat(column.values, column.offsets[:-1], dtype=np.int64)[self._samples].sum())

    def report(self, result: str) -> str:
        """`"a.jsonl: 9 rows -> 8 samples; 3 cut to 512 tokens; 1 dropped: empty"`, where `result` is "8 samples"."""
        return self._report.line(result)

    def need_samples(self, remedy: str) -> None:
        """Raise DataError unless a sample is left; it ends with the `remedy`."""
        if not len(self):
            raise self._report.no_samples_error(remedy)

    def _index(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return int(self._samples[i])


def tokenize_rows(source: Source, encoder: RowEncoder, util: DatasetUtility) -> TokenizedRows:
    """Encode the rows of a source.

    Args:
        source: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        encoder: encoder of the dataset.
        util: seed and ranks.

    Raises:
        DataError: the source cannot be read or a row is wrong; names its location.
    """
    builder = StoreBuilder()
    for batch in tokenizer_batches(read_rows(source), util):
        builder.append(encode_batch(encoder, batch))
    return TokenizedRows(builder.build(), util, source)
