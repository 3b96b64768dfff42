"""Which run folder a run writes to: a new one, or that of the run it continues. One process of a job finds out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reallm.config.training import TrainingConfig
from reallm.experiments.checkpointing import resume
from reallm.experiments.runs.files import is_run
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import read_run
from reallm.launch.job import RUN_FOLDER, Job


@dataclass(frozen=True)
class OpenRun:
    """A run folder that is there and locked."""

    folder: RunFolder
    is_resume: bool
    """Whether a run has been begun in it."""
    is_complete: bool
    """Whether that run has nothing left to do."""
    began: datetime
    """When the run was begun; local time."""

    def changes(self, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What of the settings is not as the run was begun with."""
        return resume.changes(resume.read_settings(self.folder), settings) if self.is_resume else {}


def open_run(job: Job, config: TrainingConfig, settings: Mapping[str, Any], kind: str, stack: ExitStack) -> OpenRun:
    """The folder, the same on all ranks; rank 0 makes or finds it.

    Args:
        job: all of whose processes call this.
        config: of the run.
        settings: all of them, as nested mappings.
        kind: name of the algorithm.
        stack: of rank 0, which holds the lock until it is closed.

    Raises:
        ConfigError: the folder cannot be made, holds something else, or another process is at it.
    """

    def first() -> dict[str, Any]:
        found = resume.find(config.resume, config.output_dir, config.name, settings)
        folder = found or RunFolder.create(config.output_dir, config.name, default_prefix=kind)
        stack.enter_context(folder.locked())
        earlier = read_run(folder.path) if found is not None and is_run(folder.path) else None
        began = (earlier and earlier.started) or datetime.now()
        opened = OpenRun(folder, found is not None, False, began)
        changed = resume.without_parallel(opened.changes(settings))
        return {
            "path": str(folder.path),
            "goes_on": opened.is_resume,
            "is_complete": earlier is not None and earlier.status == "done" and not changed,
            "began": began.isoformat(),
        }

    told = job.broadcast_from_rank0(first, config.parallel.timeout)
    if job.is_rank0:
        job.set(RUN_FOLDER, told["path"])
    return OpenRun(
        RunFolder(Path(told["path"])), told["goes_on"], told["is_complete"], datetime.fromisoformat(told["began"])
    )
