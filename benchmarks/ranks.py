"""Processes that do the same thing together, each on a core of its own, and say how long it took."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Make = Callable[[str, Any], Callable[[], Any]]
"""`make(way, work)`: what is to be done and timed; called once for each way, on every rank."""


class Ranks:
    """Ranks of a job on gloo, or one process that is in none.

    Args:
        cores: the core of each rank.
        store: a file that does not exist yet, by which they find each other; None for a process without a job.
        make: a function of a module.
        work: what it is given.
    """

    def __init__(self, cores: list[int], store: str | None, make: Make, work: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        for rank, core in enumerate(cores):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, len(cores), core, store, make, work)
            context.Process(target=_serve, args=arguments, daemon=True).start()
            theirs.close()
            self._connections.append(ours)

    def do(self, way: str) -> tuple[float, list[Any]]:
        """Seconds of the slowest rank, and what each has found."""
        for connection in self._connections:
            connection.send(way)
        told = [connection.recv() for connection in self._connections]
        return max(seconds for seconds, _ in told), [value for _, value in told]

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.send(None)


def _serve(
    connection: Connection, rank: int, n_ranks: int, core: int, store: str | None, make: Make, work: Any
) -> None:
    os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if store is not None:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_ranks)
    made: dict[str, Callable[[], Any]] = {}
    while (way := connection.recv()) is not None:
        if way not in made:
            made[way] = make(way, work)
        if store is not None:
            dist.barrier()
        start = time.perf_counter()
        value = made[way]()
        connection.send((time.perf_counter() - start, value))
