"""Decides which rank reports the failure of a job: one line, or one traceback, however many ranks fail.

Rank 0 reports an error that all ranks have; a rank reports an error that it alone has, with its number. When a rank has
ended, the others fail in their next communication with it: they wait, so that it or the launcher can report first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist

from reallm.errors import PeerError, one_line
from reallm.launch.job import FAILURE, Job
from reallm.launch.store import Store

WAIT_FOR_RANK0_S = 2.0
"""Seconds that another rank waits for rank 0 to report the same error."""
WAIT_FOR_CAUSE_S = 5.0
"""Seconds that a rank which lost another one waits for the cause to be reported."""
_GLOO_MESSAGES = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
_N_REPORTERS = "reporters"
"""Key of the store that counts the ranks that want to report; the first one does."""


def is_peer_error(error: BaseException) -> bool:
    """Whether an error only reports that another process has ended or is stuck; torch has no class for all of these."""
    return any(
        isinstance(one, PeerError | dist.DistError)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in _GLOO_MESSAGES))
        for one in _chain(error)
    )


def message_to_print(job: Job, error: BaseException) -> str | None:
    """The message this rank prints for an error, with the rank if it matters; None if another rank reports it.

    Args:
        job: a job of several processes.
        error: the error that ended the work of this rank.
    """
    text = one_line(error)
    assert job.store is not None
    try:
        if is_peer_error(error):
            cause = _find_cause(job, text)
            text = text if isinstance(error, PeerError) and text.startswith("rank") else cause
        elif not job.is_rank0:
            _wait_for_report(job, WAIT_FOR_RANK0_S)
        if job.store.add(_N_REPORTERS, 1) > 1:
            return None
        job.set(FAILURE, str(job.rank))
    except (dist.DistError, PeerError) as lost:
        # the store has ended, and usually rank 0 with it; rank 1 then reports in its place
        ended = "rank 0, or the launcher, has ended"
        return (str(lost) if isinstance(lost, PeerError) else ended) if job.rank <= 1 else None
    return text if job.is_rank0 or text.startswith("rank") else f"rank {job.rank}: {text}"


def describe_dead_ranks(job: Job) -> str | None:
    """`rank 1 (process 123 on node7) has ended`, for all ranks on this machine that are dead; None if none is."""
    dead = _dead_ranks(job)
    return f"{_names(job, dead)} {'has' if len(dead) == 1 else 'have'} ended" if dead else None


def claim_report(store: Store, rank: int) -> bool:
    """Claim the report of a rank's end, so that no rank reports it; False if a rank has already reported."""
    is_free = store.add(_N_REPORTERS, 1) == 1
    store.set(FAILURE, str(rank))
    return is_free


def wait_for_peers_to_read(job: Job, patience: timedelta = timedelta(seconds=3)) -> None:
    """Wait before a failed rank ends, if it serves the store, until the others have read there of the failure."""
    try:
        assert job.store is not None
        n_ended = job.store.add("ended", 1)
        deadline = time.monotonic() + patience.total_seconds()
        while job.is_store_server and n_ended < job.size and time.monotonic() < deadline:
            time.sleep(0.05)
            n_ended = job.store.add("ended", 0)
    except (dist.DistError, PeerError):
        pass  # the store has already ended


def _find_cause(job: Job, text: str) -> str:
    """The rank that communication failed with, and its known state; lets ranks that know the cause report first."""
    ended = describe_dead_ranks(job)  # before the wait, during which torchrun may end the others too
    job.set(f"lost_a_peer/{job.rank}", "")
    _wait_for_report(job, WAIT_FOR_CAUSE_S)
    if ended is not None:
        return ended
    silent = [rank for rank in range(job.size) if rank != job.rank and job.get(f"lost_a_peer/{rank}") is None]
    if silent and (len(silent) < job.size - 1 or job.size == 2):
        if "time" in text.lower():  # `Timed out`, `timeout`
            what = "see what it is waiting for" if len(silent) == 1 else "see what they are waiting for"
            return f"{_names(job, silent)} did not answer in time; {what}, or raise parallel.timeout_s"
        what = "it has ended, or its machine" if len(silent) == 1 else "they have ended, or their machines"
        return f"{_names(job, silent)} cannot be reached any more; see whether {what}"
    return f"rank {job.rank} lost another process of the job: {text[:200]}"


def _dead_ranks(job: Job, patience_s: float = 0.3) -> list[int]:
    """Like `Job.dead_ranks`, but waits a little, since connections close just before their process has ended."""
    deadline = time.monotonic() + patience_s
    while not (dead := job.dead_ranks()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return dead


def _names(job: Job, ranks: Sequence[int]) -> str:
    return " and ".join(f"rank {rank} ({job.describe_process(rank)})" for rank in ranks)


def _wait_for_report(job: Job, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while job.get(FAILURE) is None and time.monotonic() < deadline:
        time.sleep(0.05)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, followed by the errors it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
