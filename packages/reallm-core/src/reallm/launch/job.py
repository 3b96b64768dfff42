"""`Job`: the processes of a run, which find each other, agree on values, and learn that one has failed."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from reallm.errors import PeerError
from reallm.launch.open_store import connect_store
from reallm.launch.rank_env import RankEnv
from reallm.launch.store import Store, StoreWithTimeout, read_json, read_text

POLL_S, LONGEST_POLL_S = 0.01, 0.5
"""Pauses between two queries of the store, which serves all ranks; they grow with the waiting time."""
FAILURE = "failure"
"""Key of the store that is set once a rank has reported why the job ends."""
DOING = "doing"
"""Prefix of the keys of the store with what each rank is doing."""
RUN_FOLDER = "run_folder"
"""Key of the store with the folder of the run, from which it can be resumed."""


@dataclass(eq=False)
class Job:
    """The processes of a run, as seen from one of them. `Job()` is a single process.

    Values in the store (a key-value server in one process) work before there are process groups, and may take any
    time; collectives of the process groups must finish within their timeout.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes on this machine."""
    local_size: int = 1
    store: Store | None = None
    is_store_server: bool = False
    """Whether the store ends with this process."""
    _broadcasts: Iterator[int] = field(default_factory=count, repr=False)

    @classmethod
    def connect(cls, env: RankEnv, timeout: timedelta) -> Job:
        """Connect to the store of the job that this process was started for.

        Raises:
            PeerError: the store is not found within the timeout.
        """
        store = connect_store(env, timeout)
        job = cls(env.rank, env.size, env.local_rank, env.local_size, store, env.is_store_server)
        store.set(f"process/{job.rank}", f"{socket.gethostname()} {os.getpid()}")
        return job

    @property
    def is_rank0(self) -> bool:
        """Whether this is the process that prints, logs and writes pages."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether the job consists of one process."""
        return self.size == 1

    @property
    def gpu(self) -> int | None:
        """The index of this process's GPU on this machine; None for a single process, which may choose."""
        return None if self.is_alone else self.local_rank

    @contextmanager
    def process_groups(self, device: torch.device, timeout: timedelta) -> Iterator[None]:
        """Context with torch's process groups: NCCL for tensors on a GPU, gloo for those on a CPU.

        Args:
            device: device on which this process computes.
            timeout: time that a rank waits for another one.
        """
        if self.is_alone or dist.is_initialized():
            yield
            return
        raw = self.store.raw if isinstance(self.store, StoreWithTimeout) else self.store
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
        # Not if the block has raised: if a peer has ended, the groups cannot be destroyed in an orderly way.
        self.any(False)  # a barrier: no rank needs the store any more, which may end with rank 0
        dist.destroy_process_group()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: an all-reduce, inside `process_groups`."""
        if self.is_alone:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def broadcast_from_rank0(self, work: Callable[[], Any], timeout: timedelta) -> Any:
        """Do `work` on rank 0 alone, and return its result, which must be JSON, on all ranks.

        Args:
            work: function called on rank 0.
            timeout: time that the other ranks wait for it.

        Raises:
            PeerError: `work` raised on rank 0, or took too long; raised on the other ranks.
        """
        if self.is_alone:
            return work()
        assert self.store is not None
        key = f"broadcast/{next(self._broadcasts)}"
        if not self.is_rank0:
            if not self.wait_for(key, timeout):
                raise PeerError(
                    f"rank 0 ({self.describe_process(0)}) did not answer within {timeout.total_seconds():g} s; see "
                    "what it is waiting for, or raise parallel.timeout_s"
                )
            result = read_json(self.store, key)
            if not result:
                raise PeerError("rank 0 has failed")
            return result[0]
        try:
            value = work()
        except BaseException:
            self.store.set(key, "[]")
            raise
        self.store.set(key, json.dumps([value]))
        return value

    def wait_for(self, key: str, timeout: timedelta) -> bool:
        """Wait until some rank has set a key of the store; returns False if none does in time.

        It polls: while a thread waits in torch's client, the client serves no other thread, and Python handles no
        signal.

        Raises:
            PeerError: a rank has failed in the meantime.
        """
        assert self.store is not None
        deadline = time.monotonic() + timeout.total_seconds()
        pause = POLL_S
        while not self.store.check([key]):
            if self.store.check([FAILURE]):
                raise PeerError("another rank has failed")
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(1.2 * pause, LONGEST_POLL_S)
        return True

    def set(self, key: str, text: str) -> None:
        """Set a key of the store, for the launcher and the other ranks; does nothing in a single process."""
        if self.store is not None:
            self.store.set(key, text)

    def get(self, key: str) -> str | None:
        """The value of a key of the store; None if it is not set, or the store has ended."""
        try:
            if self.store is None or not self.store.check([key]):
                return None
            return read_text(self.store, key)
        except (dist.DistError, PeerError):
            return None

    def announce(self, doing: str) -> None:
        """Say what this process is about to do, such as `in call 'actor_gen'`, for others that miss it."""
        with suppress(dist.DistError, PeerError):  # the store has ended: this process will be told elsewhere
            self.set(f"{DOING}/{self.rank}", doing)

    def describe_process(self, rank: int) -> str:
        """`process 123 on node7, in call 'actor_gen'`, for error messages that name a rank."""
        host, _, pid = (self.get(f"process/{rank}") or "").partition(" ")
        doing = self.get(f"{DOING}/{rank}")
        return f"process {pid} on {host}{f', {doing}' if doing else ''}" if pid else "never seen"

    def dead_ranks(self) -> list[int]:
        """Ranks on this machine whose processes have ended."""
        hostname, dead = socket.gethostname(), []
        for rank in range(self.size):
            host, _, pid = (self.get(f"process/{rank}") or "").partition(" ")
            if host == hostname and pid.isdecimal() and not _is_alive(int(pid)):
                dead.append(rank)
        return dead


def _is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which waits for its parent to reap it, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # not Linux
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
