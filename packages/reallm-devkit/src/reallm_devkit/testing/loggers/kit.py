"""The kit for metric loggers: inputs, checks, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reallm.errors import ConfigError
from reallm.plugins import registry
from reallm.specs import LoggerSpec
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.kit import Kit
from reallm_devkit.testing.loggers import closing, continuing, telling
from reallm_devkit.testing.loggers.subject import Curves, LoggerSubject
from reallm_devkit.testing.offers import description, hook_place, light_import
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.source import reference_module

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

LOGGER_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    telling.construction,
    telling.new_names,
    telling.steps,
    telling.names,
    telling.values,
    telling.inputs,
    telling.run_folder,
    closing.close,
    closing.background,
    continuing.continues,
    continuing.resume,
    continuing.resume_anew,
    continuing.moved,
    continuing.killed,
    continuing.torn_file,
)
"""All promises of a logger."""


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
    """The name it is installed under, or the `LoggerSpec` itself, of one that is not installed yet."""

    def read(self, run_dir: Path) -> Curves | None:
        """The metrics that the files in a run folder hold: step -> name -> value.

        Of several values of one name and step the last counts. A number that the format lacks may be None. Without
        this method the kit compares files, which shows less.
        """
        return None

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """The kit for `reallm plugins check my-logger`, which takes nothing more."""
        if arguments or checkpoint is not None:
            what = arguments[0] if arguments else "--checkpoint"
            raise ConfigError(f"'{what}': a logger is checked without keys; write reallm plugins check {offer.name}")
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

    def place(self, subject: LoggerSubject) -> str:
        """The class."""
        return subject.at("")

    def subject(self, case: str) -> LoggerSubject:
        """The logger, and how to read what it writes."""
        if not self.logger:
            raise ConfigError(f"{type(self).__name__}: say which logger is to be checked: logger = 'my-logger'")
        return LoggerSubject(
            spec=self._offer().value if isinstance(self.logger, str) else self.logger,
            read=self.read,
            table=hook_place(self._offer()) if isinstance(self.logger, str) else "the LoggerSpec",
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
    """Check a logger, given as the attributes of `LoggerKit` are: `assert check_logger("csv").passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    inputs: dict[str, Any] = {"logger": logger, "skip": skip or {}}
    return LoggerKit.of(**inputs, **({"read": read} if read else {})).run()
