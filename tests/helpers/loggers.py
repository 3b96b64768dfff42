"""Helpers of the logger tests: the log of a short training, and a fake run of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reallm import builtin
from reallm.experiments.run.loggers import Loggers
from reallm.specs import Logger

CONFIG = {"name": None, "optimizer": {"lr": 1e-3}, "loggers": ["jsonl"]}


def part_of_a_run(loggers: Logger | Loggers, *steps: int) -> None:
    """Log a training loss at each step and an evaluation loss at each second one, then close."""
    for step in steps:
        loggers.log(step, {"train/loss": 1 / step})
        if step % 2 == 0:
            loggers.log(step, {"eval/loss": 2 / step})
    loggers.close()


class FakeRun:
    """The run that a fake `wandb.init` or `trackio.init` returns."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.rows: list[Any] = []
        self.defined: dict[str, Any] = {}
        self.finished = 0

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined[name] = options

    def log(self, row: dict[str, float], step: int | None = None) -> None:
        self.rows.append(row if step is None else (step, row))

    def finish(self) -> None:
        self.finished += 1


def built_in(name: str, folder: Path, resume_step: int | None = None, config: dict[str, Any] = CONFIG) -> Loggers:
    """A built-in logger in its own `Loggers`, without any message."""
    messages: list[str] = []
    loggers = Loggers({name: builtin.reallm_loggers()[name]}, folder, config, messages.append, resume_step)
    assert messages == []
    return loggers
