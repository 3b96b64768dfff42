"""Which rank tells the user why a job ends: one line, or one traceback, however many ranks fail.

A mistake that all ranks find is told by rank 0. One that a single rank finds is told by that rank, with its number.
When a rank is gone, the others fail in what they do with it: they give it, and the launcher, the time to speak first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from reallm.errors import PeerError
from reallm.parallel.job import FAILURE, Job

FIRST_SPEAKS_S = 2.0
"""How long another rank waits for rank 0 to find the same mistake."""
CAUSE_SPEAKS_S = 5.0
"""How long a rank that misses another one waits for whoever knows why."""
_OF_GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def is_of_a_peer(error: BaseException) -> bool:
    """Whether an error only says that another process is gone or stuck; torch has no class for all of these."""
    return any(
        isinstance(one, PeerError | dist.DistError)
        or (isinstance(one, RuntimeError) and any(sign in str(one) for sign in _OF_GLOO))
        for one in _chain(error)
    )


def spoken_for(job: Job, error: BaseException) -> str | None:
    """What this rank is to tell the user of an error: it, with the rank where that matters; None if another one does.

    Args:
        job: of many processes.
        error: what has ended the work of this rank.
    """
    of_a_peer = is_of_a_peer(error)
    if of_a_peer or not job.is_first:
        _wait_for_others(job, CAUSE_SPEAKS_S if of_a_peer else FIRST_SPEAKS_S)
    try:
        dead = job.dead_ranks() if of_a_peer else {}
        assert job.store is not None
        if job.store.add("speakers", 1) > 1:
            return None
        job.tell(FAILURE, str(job.rank))
    except (dist.DistError, RuntimeError):
        return f"rank {job.rank}: the process that held the job together is gone"
    text = " ".join(str(error).split()) or type(error).__name__
    if dead:
        names = " and ".join(f"rank {rank} (process {pid})" for rank, pid in dead.items())
        return f"rank {job.rank}: {names} has ended"
    if of_a_peer and not isinstance(error, PeerError):
        return f"rank {job.rank}: another process of the job has ended, or did not answer in time: {text[:200]}"
    return text if job.is_first or text.startswith(f"rank {job.rank}") else f"rank {job.rank}: {text}"


def stay_until_heard(job: Job, patience: timedelta = timedelta(seconds=3)) -> None:
    """Before a rank ends that has failed: where the store ends with it, let the others see there why."""
    try:
        assert job.store is not None
        gone = job.store.add("gone", 1)
        until = time.monotonic() + patience.total_seconds()
        while job.hosts_store and gone < job.size and time.monotonic() < until:
            time.sleep(0.05)
            gone = job.store.add("gone", 0)
    except (dist.DistError, RuntimeError):
        pass  # the store is gone already


def _wait_for_others(job: Job, seconds: float) -> None:
    until = time.monotonic() + seconds
    try:
        while job.told(FAILURE) is None and time.monotonic() < until:
            time.sleep(0.05)
    except (dist.DistError, RuntimeError):
        pass  # the store is gone, and with it who could speak


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
