"""Which rank tells the user why a job ends: one line, or one traceback, however many ranks fail.

A mistake that all ranks find is told by rank 0. One that a single rank finds is told by that rank, with its number.
When a rank is gone, the others fail in what they do with it: they give it, and the launcher, the time to speak first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist

from reallm.errors import PeerError
from reallm.launch.job import FAILURE, Job
from reallm.launch.store import Store

FIRST_SPEAKS_S = 2.0
"""How long another rank waits for rank 0 to find the same mistake."""
CAUSE_SPEAKS_S = 5.0
"""How long a rank that misses another one waits for whoever knows why."""
_OF_GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
_SPEAKERS = "speakers"


def is_of_a_peer(error: BaseException) -> bool:
    """Whether an error only says that another process is gone or stuck; torch has no class for all of these."""
    return any(
        isinstance(one, PeerError | dist.DistError)
        or (isinstance(one, RuntimeError) and any(sign in str(one) for sign in _OF_GLOO))
        for one in _chain(error)
    )


def message_to_print(job: Job, error: BaseException) -> str | None:
    """What this rank is to tell the user of an error: it, with the rank where that matters; None if another one does.

    Args:
        job: of many processes.
        error: what has ended the work of this rank.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    assert job.store is not None
    try:
        if is_of_a_peer(error):
            cause = _cause(job, text)
            text = text if isinstance(error, PeerError) and text.startswith("rank") else cause
        elif not job.is_first:
            _others_speak(job, FIRST_SPEAKS_S)
        if job.store.add(_SPEAKERS, 1) > 1:
            return None
        job.tell(FAILURE, str(job.rank))
    except (dist.DistError, PeerError) as silence:
        # no word can be had from the others; the next one speaks for rank 0, where the store was
        ended = "rank 0, or the launcher, has ended"
        return (str(silence) if isinstance(silence, PeerError) else ended) if job.rank <= 1 else None
    return text if job.is_first or text.startswith("rank") else f"rank {job.rank}: {text}"


def describe_dead_ranks(job: Job) -> str | None:
    """`rank 1 (process 123 on node7) has ended` of those on this machine that are seen to be dead, if any."""
    dead = _dead(job)
    return f"{_names(job, dead)} {'has' if len(dead) == 1 else 'have'} ended" if dead else None


def claim_report(store: Store, rank: int) -> bool:
    """Take on to tell the user of the end of a rank, so that no rank does it; False if one has done so."""
    is_free = store.add(_SPEAKERS, 1) == 1
    store.set(FAILURE, str(rank))
    return is_free


def wait_for_peers_to_read(job: Job, patience: timedelta = timedelta(seconds=3)) -> None:
    """Before a rank ends that has failed: where the store ends with it, let the others see there why."""
    try:
        assert job.store is not None
        gone = job.store.add("gone", 1)
        until = time.monotonic() + patience.total_seconds()
        while job.is_store_server and gone < job.size and time.monotonic() < until:
            time.sleep(0.05)
            gone = job.store.add("gone", 0)
    except (dist.DistError, PeerError):
        pass  # the store is gone already


def _cause(job: Job, text: str) -> str:
    """Of an error in what was done with another rank, which one that was and what is known of it.

    Those who know why it is missed have the time to say so first.
    """
    ended = describe_dead_ranks(job)  # before the wait, in which torchrun may end the others too
    job.tell(f"misses/{job.rank}", "")
    _others_speak(job, CAUSE_SPEAKS_S)
    if ended is not None:
        return ended
    silent = [rank for rank in range(job.size) if rank != job.rank and job.told(f"misses/{rank}") is None]
    if silent and (len(silent) < job.size - 1 or job.size == 2):
        if "time" in text.lower():  # `Timed out`, `timeout`
            return f"{_names(job, silent)} did not answer in time; see what it waits for, or raise parallel.timeout_s"
        return f"{_names(job, silent)} cannot be reached any more; see whether it has ended, or its machine"
    return f"rank {job.rank} lost another process of the job: {text[:200]}"


def _dead(job: Job, patience_s: float = 0.3) -> list[int]:
    """The ranks that are seen to be dead; connections are closed an instant before their process has ended."""
    until = time.monotonic() + patience_s
    while not (dead := job.dead_ranks()) and time.monotonic() < until:
        time.sleep(0.02)
    return dead


def _names(job: Job, ranks: Sequence[int]) -> str:
    return " and ".join(f"rank {rank} ({job.whereabouts(rank)})" for rank in ranks)


def _others_speak(job: Job, seconds: float) -> None:
    until = time.monotonic() + seconds
    while job.told(FAILURE) is None and time.monotonic() < until:
        time.sleep(0.05)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
