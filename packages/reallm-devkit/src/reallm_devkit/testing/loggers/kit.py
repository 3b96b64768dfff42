"""`LoggerKit`, the conformance kit for metric loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reallm.errors import ConfigError
from reallm.plugins import registry
from reallm.specs import LoggerSpec
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.common_checks import description, hook_location, light_import
from reallm_devkit.testing.kit import Kit
from reallm_devkit.testing.loggers import closing, recording, resuming
from reallm_devkit.testing.loggers.subject import Curves, LoggerSubject
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.source import reference_module

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

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


class LoggerKit(Kit[LoggerSubject]):
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

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """Make the kit for `reallm plugins check my-logger`."""
        if arguments or checkpoint is not None:
            argument = arguments[0] if arguments else "--checkpoint"
            raise ConfigError(
                f"'{argument}': a logger is checked without keys; write reallm plugins check {offer.name}"
            )
        return cls.of(logger=offer.name)

    def title(self) -> str:
        """The name of the logger, or of its class."""
        if isinstance(self.logger, str):
            return self.logger
        return str(getattr(self.logger.logger, "__qualname__", self.logger.logger))

    def provided_by(self) -> str:
        """Distribution and version of an installed logger."""
        return self._offer().plugin.release if isinstance(self.logger, str) else ""

    def module(self, subject: LoggerSubject) -> str:
        """The module of the logger's class."""
        return reference_module(subject.spec.logger)

    def source_location(self, subject: LoggerSubject) -> str:
        """The location of the logger's class."""
        return subject.at("")

    def subject(self, case: str) -> LoggerSubject:
        """Make the subject."""
        if not self.logger:
            raise ConfigError(f"{type(self).__name__}: say which logger is to be checked: logger = 'my-logger'")
        return LoggerSubject(
            spec=self._offer().value if isinstance(self.logger, str) else self.logger,
            read=self.read,
            table=hook_location(self._offer()) if isinstance(self.logger, str) else "the LoggerSpec",
            light_modules=(self._offer().plugin.module,) if isinstance(self.logger, str) else (),
        )

    def _offer(self) -> Offer:
        assert isinstance(self.logger, str)
        return registry.registry().offer("logger", self.logger)


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
