"""What a plugin says of a metric logger. Imports no torch: discovery reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reallm.plugins.lazy import TypeOrPath, resolve


class Logger(Protocol):
    """Receives the metrics of a run; made as `LoggerClass(run_dir, config)`. One that fails never ends a run."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` of optimizer step `step`; keys such as `train/loss`, `eval/loss`."""

    def close(self) -> None:
        """Flush and release; called once, also after a failure."""


@dataclass(frozen=True)
class LoggerSpec:
    """A logger class, or a lazy `"module:Class"`, and the extra that installs what it needs, if any."""

    logger: TypeOrPath
    description: str = ""
    requires: tuple[str, ...] = ()

    def logger_class(self) -> Any:
        """The logger class, imported now."""
        return resolve(self.logger)
