"""`LoggerSubject`, the logger under test, and the records that it logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reallm.specs import LoggerSpec
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.run_config import run_config
from reallm_devkit.testing.source import reference_location
from reallm_devkit.testing.spec_subject import SpecSubject

Curves = Mapping[int, Mapping[str, float | None]]
"""Step -> name -> value; None for a number that the logger's format cannot hold."""

Records = Sequence[tuple[int, Mapping[str, float]]]
"""Arguments of `log` calls, in order: step and metrics."""

TOLERANCE = 1e-6
"""Relative; some formats store float32."""


@dataclass(frozen=True, kw_only=True)
class LoggerSubject(SpecSubject[LoggerSpec]):
    """A logger, and how to read what it has written.

    Attributes:
        read: reads the metrics in a run folder; returns None if it cannot.
    """

    read: Callable[[Path], Curves | None]

    @cached_property
    def cls(self) -> Any:
        """The logger's class."""
        return self.spec.logger_class()

    @property
    def can_resume(self) -> bool:
        """Whether it has a method `resume`."""
        return hasattr(self.cls, "resume")

    def at(self, method: str) -> str:
        """The location of a method, or of the class if it has no such method."""
        return reference_location(self.spec.logger, method)

    def make(self, run_dir: Path, config: Mapping[str, Any] | None = None) -> Any:
        """Create the run folder if needed and make a logger for it, with `config` or else `run_config()`."""
        run_dir.mkdir(parents=True, exist_ok=True)
        return self.cls(run_dir, run_config() if config is None else config)

    @contextmanager
    def open(self, run_dir: Path, resume: int | None = None) -> Iterator[Any]:
        """Make a logger, resumed after step `resume` if given, and close it at the end of the block."""
        logger = self.make(run_dir)
        try:
            if resume is not None and self.can_resume:
                logger.resume(resume)
            yield logger
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                logger.close()
            raise
        logger.close()

    def run(self, run_dir: Path, records: Records, resume: int | None = None) -> None:
        """Log all records of a run, or of one that is resumed after step `resume`."""
        with self.open(run_dir, resume) as logger:
            log_records(logger, records)

    def check_read(self, run_dir: Path, records: Records, method: str, where: str = "") -> bool:
        """Compare the metrics in the run folder with the records; False if they cannot be read.

        Raises:
            CheckFailed: they differ; points to `method` of the logger.
        """
        found = self.read(run_dir)
        if found is None:
            return False
        different = difference(curves(records), found)
        if different:
            expected, seen, position = different
            raise CheckFailed(expected, seen, ", ".join(filter(None, (where, position))), self.at(method))
        return True


def log_records(logger: Any, records: Records) -> None:
    """Log all records, each as a new dict."""
    for step, metrics in records:
        logger.log(step, dict(metrics))


def run_records(steps: Iterable[int]) -> Records:
    """The records of these steps of a run: training metrics after each step, an evaluation after every second.

    The values of a step are always the same, and exact in float32.
    """
    records: list[tuple[int, Mapping[str, float]]] = []
    for step in steps:
        if step:
            records.append((step, {"train/loss": 4 - step / 16, "train/lr": step / 64, "epoch": step / 8}))
        if step % 2 == 0:
            records.append((step, {"eval/loss": 4.5 - step / 16}))
    return records


def curves(records: Records) -> dict[int, dict[str, float | None]]:
    """The metrics of each step after all records were logged."""
    by_step: dict[int, dict[str, float | None]] = {}
    for step, metrics in records:
        by_step.setdefault(step, {}).update(metrics)
    return by_step


def difference(expected: Curves, found: Curves) -> tuple[str, str, str] | None:
    """Expected, seen and where, for the first difference; None if there is none. Steps without metrics do not count."""
    expected, found = ({step: metrics for step, metrics in curves.items() if metrics} for curves in (expected, found))
    if sorted(expected) != sorted(found):
        return f"the steps {_join(sorted(expected))}", f"the steps {_join(sorted(found))}", ""
    for step, metrics in expected.items():
        seen = found[step]
        if sorted(metrics) != sorted(seen):
            return f"the metrics {_join(sorted(metrics))}", f"the metrics {_join(sorted(seen))}", f"step {step}"
        for name, value in metrics.items():
            if not _is_same(value, seen[name]):
                return f"{value}", f"{seen[name]}", f"step {step}, metric '{name}'"
    return None


def _is_same(value: float | None, seen: float | None) -> bool:
    if value is None or not math.isfinite(value):  # formats store these in different ways
        return seen is None or seen == value or math.isnan(seen)
    return seen is not None and math.isclose(value, seen, rel_tol=TOLERANCE)


def _join(items: Sequence[Any]) -> str:
    shown = ", ".join(map(str, items[:8])) or "none"
    return f"{shown}, ... ({len(items)})" if len(items) > 8 else shown


def folder_content(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
