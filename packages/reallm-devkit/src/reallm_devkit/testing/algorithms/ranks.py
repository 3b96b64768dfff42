"""Runs of two processes, forked from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path

from reallm.config.load import load
from reallm.errors import ReallmError, one_line
from reallm.specs import Algorithm

N_RANKS = 2
TIMEOUT_S = 300.0
"""For all runs together."""
GROUP_TIMEOUT_S = 60.0
"""For what one process waits for the other."""
PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "reallm.experiments.run.runner",
    __name__,
]


class RankError(Exception):
    """A run has failed, or has not ended in time; `layout` is its name."""

    def __init__(self, layout: str, message: str) -> None:
        self.layout = layout
        super().__init__(message)


def run_on_two_ranks(algorithm: Algorithm, name: str, arguments: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Make a run in each layout, one after the other, on two processes.

    Args:
        algorithm: the algorithm.
        name: its name.
        arguments: layout -> the settings of its run, as `key=value`.
        folder: an existing folder for the file by which the processes find each other.

    Raises:
        RankError: a run has failed.
        pickle.PicklingError: the algorithm is made of functions or classes that other processes cannot import.
    """
    try:
        work = pickle.dumps((algorithm, name, dict(arguments), str(folder / "store")))
    except (AttributeError, TypeError) as error:  # what pickle raises for local functions
        raise pickle.PicklingError(one_line(error)) from error
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, processes = [], []
    try:
        for rank in range(N_RANKS):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, work, theirs), daemon=True)
            process.start()
            theirs.close()
            ours.append(mine)
            processes.append(process)
        waiting = list(ours)
        while waiting:
            ready = wait(waiting, TIMEOUT_S)
            if not ready:
                raise RankError("", f"the runs did not end within {TIMEOUT_S:.0f} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                failure = _received(connection)
                if failure is not None:
                    raise RankError(*failure)
                waiting.remove(connection)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(connection: Connection) -> tuple[str, str] | None:
    try:
        failure: tuple[str, str] | None = connection.recv()
    except EOFError:
        return "", "a process died"
    return failure


def _serve(rank: int, work: bytes, connection: Connection) -> None:
    """Make all runs as one rank, and send None, or the layout that failed and why."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    import torch.distributed as dist
    from rich.console import Console

    from reallm.experiments.run.runner import run
    from reallm.launch.job import Job

    torch.set_num_threads(1)
    layout = ""
    try:
        algorithm, name, arguments, store_file = pickle.loads(work)  # written by the process that started this one
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store_file}",
            rank=rank,
            world_size=N_RANKS,
            timeout=timedelta(seconds=GROUP_TIMEOUT_S),
        )
        default_store = dist.distributed_c10d._get_default_store()
        for layout, settings in arguments.items():
            config = load(algorithm.config_class(), (), settings).build()
            store = dist.PrefixStore(f"run-{layout}", default_store)  # type: ignore[attr-defined]
            run(config, algorithm, name=name, console=Console(quiet=True), job=Job(rank, N_RANKS, rank, N_RANKS, store))
        connection.send(None)
    except BaseException as error:
        kind = "" if isinstance(error, ReallmError) else f"{type(error).__name__}: "
        connection.send((layout, f"{kind}{one_line(error)}"))
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()
