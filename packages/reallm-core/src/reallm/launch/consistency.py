"""Checks that all ranks run with the same settings, versions and data, before any work is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from reallm.errors import ConfigError, PeerError
from reallm.launch.job import Job
from reallm.launch.store import read_json

MISSING = "nothing"


class Difference(NamedTuple):
    """A value that differs between a rank and rank 0."""

    name: str
    rank: int
    value: str
    rank0_value: str


def first_difference(values: Sequence[Mapping[str, str]]) -> Difference | None:
    """The first difference, in the order of rank 0's names; `values` is rank -> name -> value."""
    rank0 = values[0]
    added = {name: None for on_rank in values[1:] for name in on_rank if name not in rank0}
    for name in (*rank0, *added):
        for rank, on_rank in enumerate(values):
            if on_rank.get(name) != rank0.get(name):
                return Difference(name, rank, on_rank.get(name, MISSING), rank0.get(name, MISSING))
    return None


def check_same_on_all_ranks(job: Job, subject: str, values: Mapping[str, str], timeout: timedelta) -> None:
    """Raise unless all ranks have the same values; all ranks call it.

    Args:
        job: one without a store, of one process or only planned, has nothing to compare.
        subject: one word, different for each comparison.
        values: name -> value, as shown to the user.
        timeout: time that rank 0 waits for the others.

    Raises:
        ConfigError: a value differs; names the first, the rank and both values. Raised on all ranks.
        PeerError: a rank has not sent its values in time.
    """
    if job.store is None:
        return
    job.store.set(f"values/{subject}/{job.rank}", json.dumps(values))
    # twice as long: rank 0 itself may start to wait late
    problem = job.broadcast_from_rank0(lambda: _compare(job, subject, timeout), 2 * timeout)
    if problem is not None:
        kind, text = problem
        raise (PeerError if kind == "late" else ConfigError)(text)


def _compare(job: Job, subject: str, timeout: timedelta) -> tuple[str, str] | None:
    """The problem as (`late` or `different`, message); None if there is none."""
    assert job.store is not None
    keys = [f"values/{subject}/{rank}" for rank in range(job.size)]
    for rank, key in enumerate(keys):
        if not job.wait_for(key, timeout):
            seconds = timeout.total_seconds()
            return "late", (
                f"rank {rank} ({job.describe_process(rank)}) has not shown up within {seconds:g} s; see whether it "
                "was started and what it is waiting for, or raise parallel.timeout_s"
            )
    found = first_difference([read_json(job.store, key) for key in keys])
    if found is None:
        return None
    return "different", (
        f"{found.name} is {found.value} on rank {found.rank} and {found.rank0_value} on rank 0; all processes of a job "
        "must have the same settings, packages and files"
    )
