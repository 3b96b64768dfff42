"""Hands metrics to every logger of a run. A logger that fails is reported once and switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reallm.plugins import registry
from reallm.specs import Logger, LoggerSpec, ResumableLogger

ALWAYS = "jsonl"
"""The logger that every run has: plots and summaries are made from it."""


def logger_specs(names: Iterable[str]) -> dict[str, LoggerSpec]:
    """The specs of the loggers named in a configuration, preceded by that of `jsonl`.

    Raises:
        PluginError: no installed plugin offers a logger of that name.
    """
    return {name: registry.get("logger", name) for name in dict.fromkeys([ALWAYS, *names])}


class Loggers:
    """The loggers of a run, started.

    Args:
        specs: from `logger_specs`; one whose packages are not installed is left out with a note.
        run_dir: folder of the run, passed to each logger.
        config: all settings of the run, passed to each logger.
        echo: prints a line for the user.
        resume_step: the optimizer step after which a run is resumed, -1 if from the beginning; None if the folder is
            new. Loggers drop the records of later steps.

    Raises:
        DataError: `jsonl` cannot drop them. What is trained again would be in it twice, and is not trained yet.
    """

    def __init__(
        self,
        specs: Mapping[str, LoggerSpec],
        run_dir: Path,
        config: Mapping[str, Any],
        echo: Callable[[str], None],
        resume_step: int | None = None,
    ) -> None:
        self._echo = echo
        self._active: dict[str, Logger] = {}
        for name, spec in specs.items():
            if name == ALWAYS and resume_step is not None:
                self._start(name, spec, run_dir, config, resume_step)
            elif all(map(is_installed, spec.requires)):
                self._try(name, self._start, name, spec, run_dir, config, resume_step)
            else:
                echo(f"logger '{name}' is off, since its packages are missing: {spec.install_command}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass `metrics` of optimizer step `step` to each logger."""
        for name, logger in list(self._active.items()):
            self._try(name, logger.log, step, metrics)

    def close(self) -> None:
        """Close all loggers."""
        while self._active:
            name, logger = self._active.popitem()
            self._try(name, logger.close)

    def _start(
        self, name: str, spec: LoggerSpec, run_dir: Path, config: Mapping[str, Any], resume_step: int | None
    ) -> None:
        logger = self._active[name] = spec.logger_class()(run_dir, config)
        if resume_step is not None and isinstance(logger, ResumableLogger):
            logger.resume(resume_step)

    def _try(self, name: str, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:  # a plugin's code may raise anything, and a run must not end for its log
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._echo(f"logger '{name}' failed and is switched off: {reason}")
            failed = self._active.pop(name, None)
            if failed is not None:
                with contextlib.suppress(Exception):  # its first failure is reported; a second one helps nobody
                    failed.close()


def is_installed(module: str) -> bool:
    """Whether a module can be imported; a mere folder of that name, such as `wandb/`, does not count."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # the package that should contain it is missing, or is not a real package
        return False
    return spec is not None and spec.origin is not None
