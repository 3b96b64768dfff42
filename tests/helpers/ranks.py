"""Runs a test's function on several ranks: processes that are started once and wait for work.

    results = on_ranks(4, work, "tp2pp2")  # work(rank, "tp2pp2") on four ranks, in a gloo group; its results by rank

The function must be importable: a function at the top of a test file or of a module.

The processes are forked from a server that has imported torch and the core, so that starting one takes a fraction of a
second, as it does again after a rank has died.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

MAX_RANKS = 8
PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "pydantic",
    "typer",
    "reallm.engine.real_model",
    "reallm.experiments.run.runner",
    "tests.helpers.warm",
]
"""What the server imports; each process would need seconds for it."""


class RankError(AssertionError):
    """A rank raised; the message has its traceback."""

    def __init__(self, rank: int, kind: str, text: str, trace: str) -> None:
        super().__init__(f"rank {rank} raised {kind}: {text}\n{trace}")
        self.rank, self.kind, self.text = rank, kind, text


def on_ranks(
    n: int, work: Callable[..., Any], *args: Any, timeout_s: float = 300.0, group_timeout_s: float = 180.0
) -> list[Any]:
    """`[work(0, *args), work(1, *args), ...]`, each in a process of its own with `torch.distributed` on gloo.

    Raises:
        RankError: the first rank that raised; the other processes are killed.
        TimeoutError: not all ranks finished in time.
    """
    assert 1 <= n <= MAX_RANKS
    workers = _POOL.workers(n)
    with tempfile.TemporaryDirectory() as folder:
        for rank, (_, connection) in enumerate(workers):
            connection.send((work, args, rank, n, str(Path(folder) / "store"), group_timeout_s))
        results: dict[int, Any] = {}
        waiting = {connection: rank for rank, (_, connection) in enumerate(workers)}
        while waiting:
            ready = wait(list(waiting), timeout_s)
            if not ready:
                _POOL.kill()
                raise TimeoutError(f"ranks {sorted(waiting.values())} of {n} were not done after {timeout_s} s")
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    succeeded, value = connection.recv()
                except EOFError:
                    _POOL.kill()
                    raise RankError(rank, "EOFError", "the process died", "") from None
                if not succeeded:
                    _POOL.kill()  # the other ranks wait for this one
                    raise RankError(rank, *value)
                results[rank] = value
    return [results[rank] for rank in range(n)]


class _Pool:
    """Processes that serve one rank each, reused by later calls."""

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Connection]] = []

    def workers(self, n: int) -> list[tuple[Any, Connection]]:
        """The first `n` processes, started if there are fewer."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        while len(self._workers) < n:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        return self._workers[:n]

    def kill(self) -> None:
        for process, connection in self._workers:
            process.kill()
            process.join()
            connection.close()
        self._workers.clear()


_POOL = _Pool()
atexit.register(_POOL.kill)


def _serve(connection: Connection) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            work, args, rank, n, store, group_timeout_s = connection.recv()
        except EOFError:
            return
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=n,
                timeout=timedelta(seconds=group_timeout_s),
            )
            result = work(rank, *args)
            with contextlib.suppress(RuntimeError):  # so that no rank leaves early; fails after another rank was lost
                dist.barrier()
            connection.send((True, result))
        except BaseException as error:
            connection.send((False, (type(error).__name__, str(error), traceback.format_exc())))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
