"""Opens the folder of a new run or of the run to resume, on rank 0, which sends the result to the other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reallm.config.load import default_settings
from reallm.config.training import AUTO, TrainingConfig
from reallm.experiments.checkpointing.resume import find_run
from reallm.experiments.runs.files import is_run
from reallm.experiments.runs.folder import RunFolder, check_not_planted
from reallm.experiments.runs.info import read_run
from reallm.experiments.runs.settings import Diff, diff, plain, read_settings, without_parallel
from reallm.launch.job import RUN_FOLDER, Job

DEFAULT_PREFIX = "run"
"""Prefix of the folder's name, for an algorithm without a name."""


@dataclass(frozen=True)
class OpenRun:
    """A run whose folder exists and is locked by rank 0."""

    algorithm: str | None
    """The name of the algorithm and of its command; None for an algorithm that no plugin offers."""
    settings: Mapping[str, Any]
    """All settings, as nested mappings of plain values."""
    folder: RunFolder
    started_at: datetime
    """Local time of the start; for a resumed run, of its first start."""
    is_resume: bool
    """Whether this continues the run in the folder; otherwise the folder is new."""
    is_finished: bool
    """Whether the resumed run has no steps left."""
    changed: Diff
    """For a resumed run, the settings that differ from those at its start."""

    @property
    def resume_command(self) -> str:
        """The command that continues the run: `reallm sft resume=runs/a`."""
        return self.folder.resume_command(self.algorithm)


def open_run(
    job: Job, config: TrainingConfig, settings: Mapping[str, Any], algorithm: str | None, stack: ExitStack
) -> OpenRun:
    """Make a run folder, or find the one to resume; the same on all ranks.

    Args:
        job: the job, all of whose processes call this.
        config: configuration of the run.
        settings: see `OpenRun`.
        algorithm: see `OpenRun`.
        stack: on rank 0, holds the folder's lock until it is closed.

    Raises:
        ConfigError: the folder cannot be made, has other content, or another process trains in it.
    """

    def open_on_rank0() -> dict[str, Any]:
        found = earlier_run(config, settings)
        folder = found or RunFolder.create(config.output_dir, config.name, default_prefix=algorithm or DEFAULT_PREFIX)
        stack.enter_context(folder.locked())
        return _read(folder, config, settings, is_resume=found is not None)

    opened = job.broadcast_from_rank0(open_on_rank0, config.parallel.timeout)
    if job.is_rank0:
        job.set(RUN_FOLDER, opened["path"])
    return _run(algorithm, settings, opened)


def planned_run(config: TrainingConfig, settings: Mapping[str, Any], algorithm: str | None) -> OpenRun:
    """The run that `open_run` would open; nothing is made or locked, so a new one without a name has no folder yet.

    Raises:
        ConfigError: the run to resume does not exist.
    """
    found = earlier_run(config, settings)
    name = config.name or f"{algorithm or DEFAULT_PREFIX}-<date>-<time>"
    folder = found or RunFolder(Path(config.output_dir) / name)
    return _run(algorithm, settings, _read(folder, config, settings, is_resume=found is not None))


def earlier_run(config: TrainingConfig, settings: Mapping[str, Any]) -> RunFolder | None:
    """The folder of the run to resume; None for a new run.

    Raises:
        ConfigError: the run to resume does not exist.
    """
    found = find_run(config.resume, config.output_dir, config.name, settings, plain(default_settings(config)))
    if found is not None and config.resume == AUTO:  # any other is named on the command line
        check_not_planted(found.path)
    return found


def _read(folder: RunFolder, config: TrainingConfig, settings: Mapping[str, Any], *, is_resume: bool) -> dict[str, Any]:
    """What the folder says about its run, as JSON."""
    earlier = read_run(folder.path) if is_resume and is_run(folder.path) else None
    changed = diff(read_settings(folder.config), settings, plain(default_settings(config))) if is_resume else {}
    return {
        "path": str(folder.path),
        "started_at": ((earlier and earlier.started) or datetime.now()).isoformat(),
        "is_resume": is_resume,
        "is_finished": earlier is not None and earlier.status == "done" and not without_parallel(changed, settings),
        "changed": plain(changed),
    }


def _run(algorithm: str | None, settings: Mapping[str, Any], read: Mapping[str, Any]) -> OpenRun:
    return OpenRun(
        algorithm,
        settings,
        RunFolder(Path(read["path"])),
        datetime.fromisoformat(read["started_at"]),
        read["is_resume"],
        read["is_finished"],
        {key: (before, now) for key, (before, now) in read["changed"].items()},
    )
