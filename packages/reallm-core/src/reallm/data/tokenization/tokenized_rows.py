"""The samples of a dataset: the encoded rows of a source, shuffled by the seed, of one data-parallel rank."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import partial

import numpy as np
from rich.console import Console

from reallm.data.datasets import DatasetUtility
from reallm.data.row_sources import RowSource, Source, source_name
from reallm.data.tokenization.cache import AUTO, entry_for, read_or_write
from reallm.data.tokenization.encoder import RowEncoder
from reallm.data.tokenization.report import Report
from reallm.data.tokenization.store import IDS, StoreBuilder, TokenStore
from reallm.data.tokenization.walk import encode_source
from reallm.errors import NoSamplesError
from reallm.launch.rank_env import RankEnv


class TokenizedRows:
    """The samples of one data-parallel rank, in the order of `DatasetUtility.shard`; pickles without the rows.

    `source` is the name of where the rows came from, and `of_all_ranks` has the samples of all ranks, in the order of
    the rows. `cache_key` tells these samples in this order from others; it is None if they are not in the cache.

    Args:
        store: the samples of all rows.
        util: seed and ranks.
        source: where the rows came from, for the report.
        cache_entry: name of the store in the cache.

    Raises:
        NoSamplesError: there are no rows, because all are on the other side of a split.
    """

    def __init__(
        self, store: TokenStore, util: DatasetUtility, source: Source, *, cache_entry: str | None = None
    ) -> None:
        if not store.n_rows:
            raise _no_rows(source)
        rows = np.array(util.shard(range(store.n_rows)), np.int64)
        sample_of_row = np.full(store.n_rows, -1, np.int64)
        sample_of_row[store.row_of_sample] = np.arange(len(store.row_of_sample))
        samples = sample_of_row[rows]
        self.source = source_name(source)
        self.of_all_ranks = store
        self.cache_key = cache_entry and f"{cache_entry} {util.seed} {util.dp_rank} {util.dp_size}"
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
        return self.of_all_ranks.field(IDS, self.index(i)).tobytes().decode()

    def field(self, name: str, i: int) -> np.ndarray:
        """A field of sample `i`, [L]; a view, not to be written to."""
        return self.of_all_ranks.field(name, self.index(i))

    def lengths(self, name: str) -> np.ndarray:
        """Number of elements of a field in each sample, int64 [n]."""
        return np.diff(self.of_all_ranks.columns[name].offsets)[self._samples]

    def n_elements(self, name: str) -> int:
        """Number of elements of a field in all samples."""
        return int(self.lengths(name).sum())

    def n_true(self, name: str) -> int:
        """Number of true elements of a bool field in all samples."""
        column = self.of_all_ranks.columns[name]
        return int(np.add.reduceat(column.values, column.offsets[:-1], dtype=np.int64)[self._samples].sum())

    def report(self, result: str) -> str:
        """`"a.jsonl: 9 rows -> 8 samples; 3 cut to 512 tokens; 1 dropped: empty"`, where `result` is "8 samples"."""
        return self._report.line(result)

    def need_samples(self, remedies: Mapping[str, str]) -> None:
        """Raise DataError unless a sample is left; it ends with what to do: for each part of a remark, its remedy."""
        if not len(self):
            raise self._report.no_samples_error(remedies)

    def index(self, i: int) -> int:
        """The index of sample `i` among those of all ranks."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return int(self._samples[i])


def tokenize_rows(
    source: Source,
    encoder: RowEncoder,
    util: DatasetUtility,
    *,
    num_proc: int | None = None,
    cache_dir: str | None = AUTO,
) -> TokenizedRows:
    """Encode the rows of a source, in several processes if it takes long, or take their tokens from the cache.

    Args:
        source: where the rows come from, as `reallm.data.rows.iter_rows` takes it.
        encoder: encoder of the dataset.
        util: seed and ranks.
        num_proc: worker processes, at most; None: as many as cores.
        cache_dir: folder of the cache; "auto": that of the user, if it can be used; None: no cache, all tokens are in
            memory.

    Raises:
        DataError: the source cannot be read, or rows are wrong; names the first one, and how many more there are.
    """
    source = RowSource.of(source)
    is_first = util.dp_rank == 0 and _rank() == 0
    encode = partial(encode_source, source, encoder, num_proc=num_proc)
    entry = entry_for(source, encoder, cache_dir)
    if entry is None:
        with StoreBuilder() as builder:
            encode(builder, console=Console(stderr=True, quiet=not is_first))
            return TokenizedRows(builder.build(), util, source)
    write = partial(encode, console=Console(stderr=True))  # of several ranks only one does it, whichever it is
    store = read_or_write(entry, write, Console(stderr=True, quiet=not is_first))
    return TokenizedRows(store, util, source, cache_entry=entry.folder.name)


def _no_rows(source: Source) -> NoSamplesError:
    split = RowSource.of(source).split
    assert split is not None  # a source without rows is an error when it is read
    what = "none of its rows; raise it" if split.is_valid else "all of its rows; lower it"
    return NoSamplesError(f"{source}: valid_fraction={split.valid_fraction} holds out {what}")


def _rank() -> int:
    environment = RankEnv.from_environment(os.environ)
    return environment.rank if environment else 0
