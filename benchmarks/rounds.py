"""Interleaved steps of several workers: in a round each makes one, in turn; slow ones sit out every second round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workers import Step, Worker

SLOW = 4.0
"""A worker that needs this many times as long as the first one is slow."""
COMPARED_STEPS = 3
"""Steps of each side whose losses are compared."""

Steps = dict[str, dict[int, Step]]
"""For each worker its steps by round. Round 0 is the warm-up."""


@dataclass(frozen=True)
class Pace:
    """How much is measured: `rounds` after the warm-up, or those that end before `until` (monotonic), at least one."""

    rounds: int
    until: float = float("inf")
    warm_up: bool = True
    """Whether round 0 is made."""


def take_turns(
    workers: Sequence[Worker],
    pace: Pace,
    check: Callable[[Steps], None],
    say: Callable[[str], None],
    wanted: object = True,
) -> Steps:
    """Run all rounds; `check` is called after each and stops the benchmark when something is wrong.

    `wanted` is what the workers are asked for.
    """
    steps: Steps = {worker.name: {} for worker in workers}
    for turn in range(0 if pace.warm_up else 1, pace.rounds + 1):
        present = _present(turn, steps, [worker.name for worker in workers])
        if turn > 1 and time.monotonic() + _seconds(steps, present) > pace.until:
            say(f"no time for more rounds; {turn - 1} of {pace.rounds} were run")
            break
        shift = turn % len(workers)  # no worker always follows the same one
        for worker in [*workers[shift:], *workers[:shift]]:
            if worker.name in present:
                steps[worker.name][turn] = step = worker.step(wanted)
                what = f"round {turn} of {pace.rounds}" if turn else "warm-up"
                left = f"; about {_left(turn, steps, workers, pace):.0f} s left" if turn else ""
                say(f"{what}: {worker.name}, {step.seconds:.1f} s{left}")
        check(steps)
    return steps


def run_sides(
    sides: Mapping[str, str], job: object, pace: Pace, check: Callable[[Steps], None], say: Callable[[str], None]
) -> Steps:
    """Start a worker for each side, by name, let them take turns, and end them.

    Args:
        sides: name -> the side, as `Worker` takes it.
        job: what each side is given.
        pace: how much is measured.
        check: see `take_turns`.
        say: prints a line.
    """
    workers: list[Worker] = []
    try:
        workers += [Worker(name, run, job) for name, run in sides.items()]
        for worker in workers:
            worker.ready()
        return take_turns(workers, pace, check, say)
    finally:
        for worker in workers:
            worker.close()


def check_losses(steps: Steps, tolerance: float, say: Callable[[str], None]) -> None:
    """Stop if the first losses of any side are not those of reallm: its speed would mean nothing.

    Args:
        steps: steps of each side that has losses, by round.
        tolerance: how much the losses of the first `COMPARED_STEPS` may differ, in nats.
        say: prints a line.
    """
    curves = {name: [step.loss for step in by_round.values()][:COMPARED_STEPS] for name, by_round in steps.items()}
    ours = curves["reallm"]
    differences = {name: max(abs(a - b) for a, b in zip(ours, losses, strict=False)) for name, losses in curves.items()}
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > tolerance:
        raise SystemExit(f"the sides do not compute the same: reallm {ours}, {worst} {curves[worst]}")
    say(
        f"losses of the first steps {', '.join(f'{loss:.4f}' for loss in ours)}: all sides agree to "
        f"{differences[worst]:.1e} (tolerance {tolerance:g})"
    )


def timed(steps: Mapping[int, Step], others: Mapping[int, Step]) -> tuple[list[float], list[float]]:
    """Seconds of two workers in the rounds that both took part in, the warm-up left out."""
    both = [turn for turn in steps if turn and turn in others]
    return [steps[turn].seconds for turn in both], [others[turn].seconds for turn in both]


def _present(turn: int, steps: Steps, names: Sequence[str]) -> list[str]:
    """Who takes part in a round: all, or in every second round only those that are not slow."""
    if turn == 0 or turn % 2:
        return list(names)
    if not all(steps[name] for name in names):  # asked in the first of the rounds, without a warm-up
        return list(names)
    first = {name: next(iter(steps[name].values())).seconds for name in names}
    return [name for name in names if first[name] <= SLOW * first[names[0]]]


def _seconds(steps: Steps, names: Sequence[str]) -> float:
    """What a round of these workers takes, by the last step of each that has made one."""
    return sum(list(steps[name].values())[-1].seconds for name in names if steps[name])


def _left(turn: int, steps: Steps, workers: Sequence[Worker], pace: Pace) -> float:
    names = [worker.name for worker in workers]
    to_do = [name for name in _present(turn, steps, names) if turn not in steps[name]]
    later = sum(_seconds(steps, _present(other, steps, names)) for other in range(turn + 1, pace.rounds + 1))
    this = _seconds(steps, to_do)  # a round that was begun is run to its end
    return max(this, min(this + later, pace.until - time.monotonic()))
