"""A pool of processes that encode batches of rows, see `worker`.

Not `multiprocessing`: its processes run the user's main module again, which fails for scripts that have no
`if __name__ == "__main__"` or come from standard input, and outlive a parent that is killed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedBatch, RowEncoder
from reallm.errors import DataError

PER_WORKER = 2
"""Batches that a worker has at a time: one to encode, and the next one."""

_START = (
    "import sys; descriptor, *sys.path = sys.argv[1:]; "
    "from reallm.data.tokenization.worker import main; main(int(descriptor))"
)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    is_ready: bool = False
    batches: list[int] = field(default_factory=list)
    """Numbers of the batches that it has, in order."""


class WorkerPool:
    """Processes that encode batches, each with one thread.

    Args:
        encoder: what to encode with.
        n_workers: number of processes.

    Raises:
        pickle.PicklingError, TypeError, AttributeError: the encoder cannot be pickled.
        OSError: no process can be started.
    """

    def __init__(self, encoder: RowEncoder, n_workers: int) -> None:
        pickled = pickle.dumps(encoder, pickle.HIGHEST_PROTOCOL)
        self._workers: list[_Worker] = []
        try:
            for _ in range(n_workers):
                self._workers.append(_start(pickled))
        except BaseException:
            self.close()
            raise

    @property
    def has_room(self) -> bool:
        """Whether a worker can take a batch; they need some seconds to start."""
        return any(worker.is_ready and len(worker.batches) < PER_WORKER for worker in self._workers)

    @property
    def has_failed(self) -> bool:
        """Whether no worker can be used, because the encoder cannot be unpickled elsewhere."""
        return not self._workers

    @property
    def n_batches(self) -> int:
        """Number of batches that workers have."""
        return sum(len(worker.batches) for worker in self._workers)

    def submit(self, number: int, rows: Sequence[Row]) -> bool:
        """Give a batch to the worker that has the fewest, if there `has_room`; False if rows cannot be pickled.

        Raises:
            DataError: the worker has died.
        """
        try:
            pickled = pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)
        except Exception:  # values that a user's function made
            return False
        worker = min((worker for worker in self._workers if worker.is_ready), key=lambda worker: len(worker.batches))
        try:
            worker.connection.send_bytes(pickled)
        except OSError:
            raise _died(worker) from None
        worker.batches.append(number)
        return True

    def collect(self, timeout: float | None) -> dict[int, EncodedBatch | None]:
        """Batches by number that are encoded by now, or within `timeout` seconds; None: encode that one yourself.

        Raises:
            DataError: a worker has died.
        """
        done: dict[int, EncodedBatch | None] = {}
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]
            try:
                answer = worker.connection.recv()
            except (EOFError, OSError):
                raise _died(worker) from None
            if worker.is_ready:
                done[worker.batches.pop(0)] = answer
            elif answer is None:
                self._workers.remove(worker)
                _stop(worker)
            else:
                worker.is_ready = True
        return done

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            _stop(worker)
        self._workers.clear()


def _start(encoder: bytes) -> _Worker:
    ours, theirs = Pipe()
    single_threaded = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno()), *sys.path],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C does not reach it, not even while Python starts
            env={**os.environ, **single_threaded},
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    worker = _Worker(process, ours)
    with suppress(OSError):  # a process that has ended already is noticed when it should answer
        ours.send_bytes(encoder)
    return worker


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.wait()


def _died(worker: _Worker) -> DataError:
    code = worker.process.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return DataError(f"a tokenization worker {how}; if memory ran out, lower dataset.num_proc (1: no workers)")
