"""Times several things in turn, round by round, so that what else the machine does is spread over all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from reallm.parallel.object_collectives import all_gather_json

Key = TypeVar("Key")
MOST_ROUNDS = 15
FEWEST_ROUNDS = 3


def time_rounds(
    works: Mapping[Key, Callable[[], Sequence[float]]], seconds: float, advance: Callable[[float], None]
) -> dict[Key, list[float]]:
    """The median of what each work measures, over rounds in which each is done once; the first round warms up.

    All ranks of a job make the same call and do each work at the same time, since they share what a machine has. Of the
    times of a work those of the slowest rank count, for which the others would wait.

    Args:
        works: functions that do something and return the seconds that its parts took; none on a rank that is idle.
        seconds: time for all rounds; at least three are done.
        advance: called with the share of the time that is over.
    """
    found: dict[Key, list[Sequence[float]]] = {key: [] for key in works}
    begin, is_over, n_rounds = time.perf_counter(), False, 0
    while not is_over:
        for key, work in works.items():
            if dist.is_initialized():
                dist.barrier()
            gc.disable()
            measured = work()
            gc.enable()
            if n_rounds:
                found[key].append(measured)
        n_rounds += 1
        share = (time.perf_counter() - begin) / seconds
        advance(min(1.0, share))
        is_over = n_rounds > FEWEST_ROUNDS and (n_rounds > MOST_ROUNDS or _of_rank0(share) >= 1)
    advance(1.0)
    return {
        key: [statistics.median(part) for part in zip(*rounds, strict=True)]
        for key, rounds in zip(found, _slowest([*found.values()]), strict=True)
    }


def synchronize(device: torch.device) -> float:
    """The time when a device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _slowest(found: Sequence[Sequence[Sequence[float]]]) -> list[list[list[float]]]:
    """Seconds by work, round and part: the most of all ranks."""
    world = dist.group.WORLD if dist.is_initialized() else None
    by_rank = [found] if world is None else all_gather_json(found, world).values()
    return [
        [[max(part) for part in zip(*filter(None, of_round), strict=True)] for of_round in zip(*of_work, strict=True)]
        for of_work in zip(*by_rank, strict=True)
    ]


def _of_rank0(value: float) -> float:
    """The value of rank 0, so that all ranks do as many rounds."""
    if not dist.is_initialized():
        return value
    told = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(told, src=0)
    return told.item()
