"""Whether all ranks were started with the same settings, versions and data: said in one line before work is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from reallm.errors import ConfigError, PeerError
from reallm.launch.job import Job

MISSING = "nothing"


class Difference(NamedTuple):
    """What a rank has otherwise than rank 0."""

    name: str
    rank: int
    value: str
    first_value: str


def first_difference(facts: Sequence[Mapping[str, str]]) -> Difference | None:
    """The first fact, in the order of rank 0's, that a rank has otherwise; by rank -> name -> value."""
    first = facts[0]
    also = {name: None for ours in facts[1:] for name in ours if name not in first}
    for name in (*first, *also):
        for rank, ours in enumerate(facts):
            if ours.get(name) != first.get(name):
                return Difference(name, rank, ours.get(name, MISSING), first.get(name, MISSING))
    return None


def check_same_on_all_ranks(job: Job, subject: str, facts: Mapping[str, str], timeout: timedelta) -> None:
    """Compare what the ranks hold for true, on rank 0; all ranks call it.

    Args:
        job: nothing is compared in a process alone.
        subject: in one word, different for each comparison.
        facts: name -> value, as they are shown to the user.
        timeout: how long rank 0 waits for the others.

    Raises:
        ConfigError: on all ranks, with the first thing that differs, the rank and both values.
        PeerError: a rank has not come in time.
    """
    if job.is_alone:
        return
    assert job.store is not None
    job.store.set(f"facts/{subject}/{job.rank}", json.dumps(facts))
    # rank 0 may itself come late, and then wait
    problem = job.broadcast_from_rank0(lambda: _problem(job, subject, timeout), 2 * timeout)
    if problem is not None:
        kind, text = problem
        raise (PeerError if kind == "late" else ConfigError)(text)


def _problem(job: Job, subject: str, timeout: timedelta) -> tuple[str, str] | None:
    assert job.store is not None
    keys = [f"facts/{subject}/{rank}" for rank in range(job.size)]
    for rank, key in enumerate(keys):
        if not job.wait_for(key, timeout):
            seconds = timeout.total_seconds()
            return "late", (
                f"rank {rank} ({job.whereabouts(rank)}) has not come within {seconds:g} s; see whether it was started "
                "and what it waits for, or raise parallel.timeout_s"
            )
    found = first_difference([json.loads(job.store.get(key)) for key in keys])
    if found is None:
        return None
    return "different", (
        f"{found.name} is {found.value} on rank {found.rank} and {found.first_value} on rank 0; all processes of a job "
        "must have the same settings, packages and files"
    )
