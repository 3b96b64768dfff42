"""A logger under test: how it is made, what it is told, and what it has kept of that."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reallm.specs import LoggerSpec
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.source import reference_location

Curves = Mapping[int, Mapping[str, float | None]]
"""Step -> name -> value; None for a number that the format of the logger lacks."""

Records = Sequence[tuple[int, Mapping[str, float]]]
"""What a logger is told, in order."""

CONFIG: Mapping[str, Any] = {
    "name": "first-try",
    "model": {"path": "models/tiny", "compile": False},
    "optimizer": {"lr": 2e-05, "warmup_steps": None},
    "loggers": ["jsonl", "tensorboard"],
}
"""The settings of a run, of every type that there is."""

TOLERANCE = 1e-6
"""Relative: some formats keep float32."""


@dataclass(frozen=True)
class LoggerSubject:
    """A logger, and how to read what it has written.

    Attributes:
        spec: what the plugin returns.
        read: the metrics in a run folder; None if that cannot be told.
        table: where the plugin says so.
        light_modules: imported to look at the plugin.
    """

    spec: LoggerSpec
    read: Callable[[Path], Curves | None]
    table: str
    light_modules: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What the plugin says of the logger."""
        return self.spec.description

    @cached_property
    def cls(self) -> Any:
        """The logger's class."""
        return self.spec.logger_class()

    @property
    def can_resume(self) -> bool:
        """Whether it wants to know that a run continues."""
        return hasattr(self.cls, "resume")

    def at(self, method: str) -> str:
        """Where the class defines a method, or is itself."""
        return reference_location(self.spec.logger, method)

    def make(self, run_dir: Path, config: Mapping[str, Any] | None = None) -> Any:
        """A new logger, for a run folder that exists; its configuration is a copy of `CONFIG`, or the one given."""
        run_dir.mkdir(parents=True, exist_ok=True)
        return self.cls(run_dir, copy.deepcopy(dict(CONFIG)) if config is None else config)

    @contextmanager
    def opened(self, run_dir: Path, resume: int | None = None) -> Iterator[Any]:
        """A new logger, of a run that continues after step `resume`, which is closed in the end."""
        logger = self.make(run_dir)
        try:
            if resume is not None and self.can_resume:
                logger.resume(resume)
            yield logger
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is to be told
                logger.close()
            raise
        logger.close()

    def run(self, run_dir: Path, records: Records, resume: int | None = None) -> None:
        """A whole run, or a part of one that continues after step `resume`."""
        with self.opened(run_dir, resume) as logger:
            tell(logger, records)

    def check_read(self, run_dir: Path, records: Records, method: str, where: str = "") -> bool:
        """Whether the run folder can be read. If so, it holds what was told, or the check fails for `method`."""
        found = self.read(run_dir)
        if found is None:
            return False
        different = difference(curves(records), found)
        if different:
            expected, seen, place = different
            raise CheckFailed(expected, seen, ", ".join(filter(None, (where, place))), self.at(method))
        return True


def tell(logger: Any, records: Records) -> None:
    """Log all records, each as a mapping of its own."""
    for step, metrics in records:
        logger.log(step, dict(metrics))


def part_of_a_run(steps: Iterable[int]) -> Records:
    """What a run logs of these steps: after each a loss, after every second an evaluation as well.

    A step has the same values each time. All are exact in float32.
    """
    records: list[tuple[int, Mapping[str, float]]] = []
    for step in steps:
        if step:
            records.append((step, {"train/loss": 4 - step / 16, "train/lr": step / 64, "epoch": step / 8}))
        if step % 2 == 0:
            records.append((step, {"eval/loss": 4.5 - step / 16}))
    return records


def curves(records: Records) -> dict[int, dict[str, float | None]]:
    """What is known of each step after all that was told."""
    found: dict[int, dict[str, float | None]] = {}
    for step, metrics in records:
        found.setdefault(step, {}).update(metrics)
    return found


def difference(expected: Curves, found: Curves) -> tuple[str, str, str] | None:
    """What is expected, what is seen, and where; None if both hold the same. A step without metrics is none."""
    expected, found = ({step: of for step, of in one.items() if of} for one in (expected, found))
    if sorted(expected) != sorted(found):
        return f"the steps {_listed(sorted(expected))}", f"the steps {_listed(sorted(found))}", ""
    for step, metrics in expected.items():
        seen = found[step]
        if sorted(metrics) != sorted(seen):
            return f"the metrics {_listed(sorted(metrics))}", f"the metrics {_listed(sorted(seen))}", f"step {step}"
        for name, value in metrics.items():
            if not _is_same(value, seen[name]):
                return f"{value}", f"{seen[name]}", f"step {step}, metric '{name}'"
    return None


def _is_same(value: float | None, seen: float | None) -> bool:
    if value is None or not math.isfinite(value):  # formats differ in what they have for these
        return seen is None or seen == value or math.isnan(seen)
    return seen is not None and math.isclose(value, seen, rel_tol=TOLERANCE)


def _listed(items: Sequence[Any]) -> str:
    shown = ", ".join(map(str, items[:8])) or "none"
    return f"{shown}, ... ({len(items)})" if len(items) > 8 else shown


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
