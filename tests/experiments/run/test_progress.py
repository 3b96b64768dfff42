"""The parts of a run: the order of data, of calls, progress lines and curves."""

from __future__ import annotations

import io

from rich.console import Console

from reallm.experiments.run.progress import TrainingProgress


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


METRICS = {"loss": 1.25, "lr": 2e-5, "tokens_per_s": 1234.5, "grad_norm": 0.5}


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    clock, printed = Clock(), io.StringIO()
    with TrainingProgress(Console(file=printed, width=200), 100, clock) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.step(step, METRICS)
    lines = printed.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 1.2500  lr 2.00e-05  1,234 tokens/s"
    assert lines[1] == "step 11/100  loss 1.2500  lr 2.00e-05  1,234 tokens/s  1:29 left"
    assert lines[-1].startswith("step 100/100")
    assert len(lines) == 11


def test_on_a_terminal_there_is_a_bar_with_the_same_numbers() -> None:
    clock, printed = Clock(), io.StringIO()
    console = Console(file=printed, force_terminal=True, width=160)
    with TrainingProgress(console, 4, clock) as progress:
        for step in range(1, 4):
            clock.now += 60.0
            progress.step(step, METRICS)
        with progress.doing("evaluating"):
            progress.echo("a line above the bar")
    for expected in ("3/4", "loss 1.2500", "lr 2.00e-05", "1,234 tokens/s", "1:00 left", "a line above the bar"):
        assert expected in printed.getvalue(), expected
