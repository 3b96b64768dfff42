"""All processes of a run together: how they find each other, decide as one, and wait for the first."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from reallm.errors import PeerError
from reallm.launch.rank_env import RankEnv
from reallm.launch.store import Store, TimedStore

POLL_S, LONGEST_POLL_S = 0.01, 0.5
"""A store serves all ranks: what takes long is asked for less often."""
FAILURE = "failure"
"""Key of the store that is there when a rank has told the user why the job ends."""
RUN_FOLDER = "run_folder"
"""Key of the store with the folder to go on from."""


@dataclass(eq=False)
class Job:
    """The processes of a run, as one of them sees it. `Job()` is a process alone, in which nothing is to be agreed.

    What is told through the store (a key-value server in one process) works before there are process groups, and
    may take any time; what goes through the groups must come within their timeout.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes on this machine."""
    local_size: int = 1
    store: Store | None = None
    is_store_server: bool = False
    """Whether the store ends with this process."""
    _told: Iterator[int] = field(default_factory=count, repr=False)

    @classmethod
    def connected(cls, started: RankEnv, timeout: timedelta) -> Job:
        """The job that a process was started for, after its store has been found.

        Raises:
            PeerError: there is no store within the timeout.
        """
        try:
            server = dist.TCPStore(  # type: ignore[attr-defined]
                started.address,
                started.port,
                world_size=started.size,
                is_master=started.is_store_server,
                timeout=timeout,
                wait_for_workers=False,
                multi_tenant=True,
            )
        except (dist.DistError, RuntimeError) as error:
            raise PeerError(
                f"rank {started.rank} finds no rank 0 at {started.address}:{started.port}, where MASTER_ADDR and "
                f"MASTER_PORT say it is ({_first_line(error)}); see that all processes were started"
            ) from error
        where = f"rank 0 or its launcher, at {started.address}:{started.port},"
        store = TimedStore(dist.PrefixStore("reallm", server), where)  # type: ignore[attr-defined]
        job = cls(started.rank, started.size, started.local_rank, started.local_size, store, started.is_store_server)
        store.set(f"process/{job.rank}", f"{socket.gethostname()} {os.getpid()}")
        return job

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints, logs and writes pages."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def gpu(self) -> int | None:
        """The number of the GPU on this machine that this process is to take; None if it is alone, and may choose."""
        return None if self.is_alone else self.local_rank

    @contextmanager
    def joined(self, device: torch.device, timeout: timedelta) -> Iterator[None]:
        """Have process groups in the block: NCCL for tensors on a GPU and gloo for those on a CPU.

        Args:
            device: where this process computes.
            timeout: how long a rank waits for another one.
        """
        if self.is_alone or dist.is_initialized():
            yield
            return
        raw = self.store.raw if isinstance(self.store, TimedStore) else self.store
        assert raw is not None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("groups", raw),  # type: ignore[attr-defined, arg-type]
            rank=self.rank,
            world_size=self.size,
            timeout=timeout,
        )
        yield
        # Not where the block has raised: with a peer gone, the groups cannot be taken down in good order.
        self.any(False)  # all have asked the store what they had to, which may end with rank 0
        dist.destroy_process_group()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all call it, inside `joined`, and get the same answer."""
        if self.is_alone:
            return flag
        together = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return bool(together.item())

    def broadcast_from_rank0(self, work: Callable[[], Any], timeout: timedelta) -> Any:
        """What `work` gives on rank 0, on all ranks; it must be JSON.

        Args:
            work: done by rank 0 alone.
            timeout: how long the others wait for it.

        Raises:
            PeerError: on the other ranks, where `work` raised on rank 0, or took too long.
        """
        if self.is_alone:
            return work()
        assert self.store is not None
        key = f"first/{next(self._told)}"
        if not self.is_first:
            if not self.wait_for(key, timeout):
                raise PeerError(
                    f"rank 0 ({self.whereabouts(0)}) did not answer within {timeout.total_seconds():g} s; see what it "
                    "waits for, or raise parallel.timeout_s"
                )
            told = json.loads(self.store.get(key))
            if not told:
                raise PeerError("rank 0 has failed")
            return told[0]
        try:
            value = work()
        except BaseException:
            self.store.set(key, "[]")
            raise
        self.store.set(key, json.dumps([value]))
        return value

    def wait_for(self, key: str, timeout: timedelta) -> bool:
        """Wait until some rank has set a key of the store; whether it came in time.

        The store is asked again and again: it does not answer other threads while one waits in it, and signals would
        not be heard.

        Raises:
            PeerError: a rank has failed meanwhile.
        """
        assert self.store is not None
        until = time.monotonic() + timeout.total_seconds()
        pause = POLL_S
        while not self.store.check([key]):
            if self.store.check([FAILURE]):
                raise PeerError("another rank has failed")
            if time.monotonic() > until:
                return False
            time.sleep(pause)
            pause = min(1.2 * pause, LONGEST_POLL_S)
        return True

    def tell(self, key: str, text: str) -> None:
        """Leave a word in the store for the launcher and the other ranks; nothing in a process alone."""
        if self.store is not None:
            self.store.set(key, text)

    def told(self, key: str) -> str | None:
        """What was left under a key of the store, if it and the store are there."""
        try:
            if self.store is None or not self.store.check([key]):
                return None
            return self.store.get(key).decode()
        except (dist.DistError, PeerError):
            return None

    def whereabouts(self, rank: int) -> str:
        """`process 123 on node7` of a rank."""
        host, _, pid = (self.told(f"process/{rank}") or "").partition(" ")
        return f"process {pid} on {host}" if pid else "never seen"

    def dead_ranks(self) -> list[int]:
        """Those on this machine whose processes are no more."""
        here, dead = socket.gethostname(), []
        for rank in range(self.size):
            host, _, pid = (self.told(f"process/{rank}") or "").partition(" ")
            if host == here and not _is_alive(int(pid)):
                dead.append(rank)
        return dead


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to take note of its end does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # no such files on this system
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip()
