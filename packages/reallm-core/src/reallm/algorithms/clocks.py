"""Clocks of the ranks of a job, compared once, so that their times can be put into one picture."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed as dist

from reallm.parallel.object_collectives import all_gather_json

N_EXCHANGES = 8
"""The fastest of so many exchanges with another machine counts: the error is at most half of its time."""


def shared_zero() -> float:
    """The moment at which rank 0 took part in this, on this rank's `time.perf_counter`; all ranks of the job call it.

    Processes on one machine have the same clock (CLOCK_MONOTONIC). The clock of another machine is compared with that
    of rank 0 by messages.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return time.perf_counter()
    assert dist.group.WORLD is not None
    found = all_gather_json([_machine(), time.perf_counter()], dist.group.WORLD)
    (machine, zero), rank = found[0], dist.get_rank()
    offset = 0.0
    for other, (its_machine, _) in found.items():
        if its_machine == machine:
            continue
        if rank == 0:
            _answer(other)
        elif rank == other:
            offset = _offset_to_rank0()
    return float(zero) + offset


def _machine() -> str:
    """What names this machine, since it was started."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return boot_id.read_text(encoding="ascii").strip() if boot_id.is_file() else str(dist.get_rank())


def _answer(other: int) -> None:
    """Tell another rank this one's time, as often as it asks."""
    for _ in range(N_EXCHANGES):
        dist.recv(torch.empty(1, dtype=torch.float64), other)
        dist.send(torch.tensor([time.perf_counter()], dtype=torch.float64), other)


def _offset_to_rank0() -> float:
    """This rank's clock minus that of rank 0, in seconds."""
    best: tuple[float, float] | None = None
    for _ in range(N_EXCHANGES):
        start, answer = time.perf_counter(), torch.empty(1, dtype=torch.float64)
        dist.send(answer, 0)
        dist.recv(answer, 0)
        end = time.perf_counter()
        best = min(best or (end - start, 0.0), (end - start, (start + end) / 2 - answer.item()))
    assert best is not None
    return best[1]
