"""`LoggerKit`, the conformance kit for metric loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from reallm.specs import LoggerSpec
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.loggers import closing, recording, resuming
from reallm_devkit.testing.loggers.subject import Curves, LoggerSubject
from reallm_devkit.testing.plugin_kit import PluginKit
from reallm_devkit.testing.report import Report

LOGGER_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    recording.construction,
    recording.new_names,
    recording.steps,
    recording.names,
    recording.values,
    recording.inputs,
    recording.run_folder,
    closing.close,
    closing.background,
    resuming.continues,
    resuming.resume,
    resuming.resume_anew,
    resuming.moved,
    resuming.killed,
    resuming.torn_file,
)
"""The checks of a logger."""


class LoggerKit(PluginKit[LoggerSubject]):
    """The checks of a metric logger. As a test suite:

    class TestMyLogger(LoggerKit):
        logger = "my-logger"

        def read(self, run_dir):
            return {0: {"eval/loss": 2.5}, ...}  # from the files in run_dir
    """

    kind = "logger"
    checks: ClassVar[tuple[Check[Any], ...]] = LOGGER_CHECKS

    logger: ClassVar[str | LoggerSpec] = ""
    """The name it is installed under, or the `LoggerSpec` of one that is not installed yet."""

    def read(self, run_dir: Path) -> Curves | None:
        """Read the metrics from the files in a run folder: step -> name -> value.

        The last of several values of one name and step counts. A number that the format cannot hold may be None.
        Without this method the kit compares files, which finds fewer mistakes.
        """
        return None

    def subject(self, case: str) -> LoggerSubject:
        """Make the subject."""
        return LoggerSubject(
            spec=self._spec(), read=self.read, table=self._table(), light_modules=self._light_modules()
        )


def check_logger(
    logger: str | LoggerSpec,
    *,
    read: Callable[[Path], Curves | None] | None = None,
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Check a logger; the arguments are the attributes of `LoggerKit`: `assert check_logger("csv").passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    inputs: dict[str, Any] = {"logger": logger, "skip": skip or {}}
    return LoggerKit.of(**inputs, **({"read": read} if read else {})).run()
