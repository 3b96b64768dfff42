"""Schedules: the order in which each pipeline stage processes micro-batches. Pure functions; imports no torch.

One forward, one backward (1F1B; Narayanan et al., 2019): a stage begins with as many forward passes as there are stages
after it, then alternates, and ends with the remaining backward passes. It never holds more micro-batches than
there are stages from it to the last, however many there are in all. Three stages and four micro-batches, where a
backward pass takes twice as long as a forward pass:

    >>> print(render(3, 4))
    stage 0  F0 F1 F2 .. .. .. .. B0 B0 F3 B1 B1 .. B2 B2 .. B3 B3
    stage 1  .. F0 F1 .. .. B0 B0 F2 B1 B1 F3 B2 B2 .. B3 B3 .. ..
    stage 2  .. .. F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3 .. .. .. ..
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Op(NamedTuple):
    """The forward or the backward pass of a micro-batch on one stage."""

    kind: Literal["F", "B"]
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}"


def one_f_one_b(stage: int, pp: int, n: int) -> list[Op]:
    """The operations of a stage in training, with `pp` stages and `n` micro-batches.

    >>> print(*one_f_one_b(0, 2, 3))
    F0 F1 B0 F2 B1 B2
    """
    warm_up = min(pp - stage - 1, n)
    ops = [Op("F", i) for i in range(warm_up)]
    for i in range(warm_up, n):
        ops += Op("F", i), Op("B", i - warm_up)
    return ops + [Op("B", i) for i in range(n - warm_up, n)]


def forward_only(n: int) -> list[Op]:
    """The operations of every stage in evaluation."""
    return [Op("F", i) for i in range(n)]


def most_in_flight(ops: Sequence[Op]) -> int:
    """The largest number of micro-batches that are between their forward and their backward pass at the same time."""
    held = most = 0
    for op in ops:
        held += 1 if op.kind == "F" else -1
        most = max(most, held)
    return most


def simulate(schedule: Sequence[Sequence[Op]], *, forward: int = 1, backward: int = 2) -> list[dict[Op, int]]:
    """Start time of each operation on each stage, assuming that messages take no time.

    Args:
        schedule: the operations of each stage.
        forward: time of a stage's forward pass.
        backward: time of a stage's backward pass.

    Raises:
        ValueError: the schedule deadlocks; names the operations that stages wait for.
    """
    starts: list[dict[Op, int]] = [{} for _ in schedule]
    ends: list[dict[Op, int]] = [{} for _ in schedule]
    left = sum(len(ops) for ops in schedule)
    while left:
        before = left
        for stage, ops in enumerate(schedule):
            while len(starts[stage]) < len(ops):
                op = ops[len(starts[stage])]
                needed = _needed(op, stage, len(schedule))
                if any(other not in ends[where] for where, other in needed):
                    break
                free = max(ends[stage].values(), default=0)
                starts[stage][op] = max([free, *(ends[where][other] for where, other in needed)])
                ends[stage][op] = starts[stage][op] + (forward if op.kind == "F" else backward)
                left -= 1
        if left == before:
            waiting = [
                f"stage {s} for {ops[len(starts[s])]}" for s, ops in enumerate(schedule) if len(starts[s]) < len(ops)
            ]
            raise ValueError(f"no stage can continue: {', '.join(waiting)}")
    return starts


def render(pp: int, n: int, *, forward: int = 1, backward: int = 2) -> str:
    """Render 1F1B as text: a line for each stage, a column for each unit of time, dots where the stage is idle."""
    times = {"F": forward, "B": backward}
    starts = simulate([one_f_one_b(stage, pp, n) for stage in range(pp)], forward=forward, backward=backward)
    cells = [{start + unit: str(op) for op, start in row.items() for unit in range(times[op.kind])} for row in starts]
    end = max((time for row in cells for time in row), default=-1) + 1
    width = len(str(Op("F", max(n - 1, 0))))
    return "\n".join(
        f"stage {stage}  " + " ".join(row.get(time, "." * width).ljust(width) for time in range(end))
        for stage, row in enumerate(cells)
    )


def _needed(op: Op, stage: int, pp: int) -> list[tuple[int, Op]]:
    """The operations that an operation waits for, as (stage, operation)."""
    if op.kind == "F":
        return [(stage - 1, op)] if stage else []
    forward = (stage, Op("F", op.micro_batch))
    return [forward] if stage == pp - 1 else [forward, (stage + 1, op)]
