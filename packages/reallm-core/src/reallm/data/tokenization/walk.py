"""The walk from the rows of a source to their tokens: streamed in batches, with progress, wrong rows collected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from rich.console import Console

from reallm.data.row_errors import RowErrors
from reallm.data.row_sources import Source
from reallm.data.rows import Row, iter_rows
from reallm.data.tokenization.encoder import RowEncoder
from reallm.data.tokenization.parallel import WORKERS_PAY_AFTER, encode_in_order
from reallm.data.tokenization.progress import RowProgress
from reallm.data.tokenization.source_files import count_rows
from reallm.data.tokenization.store import StoreBuilder

BATCH = 512
"""Rows in a call of the tokenizer."""
ROWS_AFTER_ERROR = 20_000
"""Rows that are still read after a wrong one, to say how many more there are."""


def encode_source(
    source: Source,
    encoder: RowEncoder,
    builder: StoreBuilder,
    *,
    num_proc: int | None,
    console: Console,
    workers_pay_after: float = WORKERS_PAY_AFTER,
) -> None:
    """Encode all rows of a source, and append them to a store.

    Args:
        source: where the rows come from.
        encoder: what to encode with.
        builder: where the encoded rows go.
        num_proc: number of worker processes, at most; see `encode_in_order`.
        console: where progress is shown.
        workers_pay_after: see `encode_in_order`.

    Raises:
        DataError: the source cannot be read or rows are wrong; names the first one, and how many more there are.
    """
    errors = RowErrors()
    n_after_error = 0
    with RowProgress("tokenizing", lambda: count_rows(source), console=console) as progress:
        for batch in encode_in_order(
            _batches(iter_rows(source, errors=errors)),
            encoder,
            num_proc=num_proc,
            n_rows=lambda: progress.total,
            workers_pay_after=workers_pay_after,
        ):
            for index, error in batch.errors:
                errors.add(index, error)
            if not errors:
                builder.append(batch)
            else:
                n_after_error += len(batch.is_kept)
                if n_after_error > ROWS_AFTER_ERROR:
                    errors.check(all_read=False)
            progress.advance(len(batch.is_kept))
    errors.check()


def _batches(rows: Iterator[Row]) -> Iterator[Sequence[Row]]:
    while batch := list(islice(rows, BATCH)):
        yield batch
