"""Encodes batches of rows in order: in this process, and in worker processes if there is enough left to do."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedBatch, RowEncoder, encode_batch
from reallm.data.tokenization.workers import PER_WORKER, WorkerPool
from reallm.launch.cores import n_cores

WORKERS_PAY_AFTER = 8.0
"""Seconds of work that must be left for workers to be started; starting them takes two or three."""


def encode_in_order(
    batches: Iterator[Sequence[Row]],
    encoder: RowEncoder,
    *,
    num_proc: int | None,
    n_rows: Callable[[], int | None],
    workers_pay_after: float = WORKERS_PAY_AFTER,
) -> Iterator[EncodedBatch]:
    """Encode batches, and give them in the same order.

    The first ones are encoded in this process, which shows how long the rest will take. While workers start, this
    process goes on, and it takes over what cannot be done elsewhere: encoders or rows that cannot be pickled, and
    batches in which anything fails.

    Args:
        batches: batches of rows, read while they are used; a few are in memory at a time.
        encoder: what to encode with.
        num_proc: number of worker processes, at most; None: as many as cores. 1: none.
        n_rows: function that returns the number of rows in all batches if it is known.
        workers_pay_after: seconds of work that must be left for workers to be started.

    Raises:
        DataError: what `encode_batch` raises, or a worker was killed.
    """
    n_workers = num_proc or n_cores()
    may_start = n_workers > 1 and bool(sys.executable)
    started, n_done = time.monotonic(), 0
    while may_start and not _workers_pay(time.monotonic() - started, n_done, n_rows, workers_pay_after):
        batch = next(batches, None)
        if batch is None:
            return
        yield encode_batch(encoder, batch)
        n_done += len(batch)
    pool = _pool(encoder, n_workers) if may_start else None
    if pool is not None:
        try:
            yield from _with_pool(batches, encoder, pool, n_workers)
        finally:
            pool.close()
    for batch in batches:
        yield encode_batch(encoder, batch)


def _workers_pay(seconds: float, n_done: int, n_rows: Callable[[], int | None], enough: float) -> bool:
    """Whether what is left takes longer than `enough`: by its share, or as long again as the work so far."""
    if not n_done or seconds < min(1.0, enough):
        return False
    total = n_rows()
    return (seconds if total is None else seconds / n_done * (total - n_done)) >= enough


def _pool(encoder: RowEncoder, n_workers: int) -> WorkerPool | None:
    try:
        return WorkerPool(encoder, n_workers)
    except Exception:  # an encoder of any plugin may fail to pickle in any way; one process can always do the work
        return None


def _with_pool(
    batches: Iterator[Sequence[Row]], encoder: RowEncoder, pool: WorkerPool, n_workers: int
) -> Iterator[EncodedBatch]:
    """Encode batches with a pool. If it turns out to be of no use, some of `batches` may be left."""
    taken: dict[int, Sequence[Row]] = {}  # not encoded yet, by number
    waiting: deque[int] = deque()  # those of `taken` that no worker has
    done: dict[int, EncodedBatch] = {}
    n_taken = n_given = 0
    at_once = (PER_WORKER + 1) * n_workers
    while True:
        while not pool.has_failed and n_taken - n_given < at_once and (batch := next(batches, None)) is not None:
            taken[n_taken] = batch
            waiting.append(n_taken)
            n_taken += 1
        while waiting and pool.has_room:
            number = waiting.popleft()
            if not pool.submit(number, taken[number]):
                done[number] = encode_batch(encoder, taken.pop(number))
        while n_given in done:
            yield done.pop(n_given)
            n_given += 1
        if not taken:
            if n_given == n_taken:
                return
            continue
        if not pool.n_batches:  # no worker is ready yet
            number = waiting.popleft()
            done[number] = encode_batch(encoder, taken.pop(number))
        for number, answer in pool.collect(None if pool.n_batches else 0).items():
            rows = taken.pop(number)
            done[number] = encode_batch(encoder, rows) if answer is None else answer
