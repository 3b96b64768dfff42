"""Which run folder a run writes to: a new one, or that of the run it continues. One process of a job finds out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reallm.experiments import resume
from reallm.experiments.run_files import is_run
from reallm.experiments.run_folder import RunFolder
from reallm.experiments.run_info import read_run
from reallm.experiments.training_config import TrainingConfig
from reallm.parallel.job import RUN_FOLDER, Job


@dataclass(frozen=True)
class Opened:
    """A run folder that is there and locked."""

    folder: RunFolder
    goes_on: bool
    """Whether a run has been begun in it."""
    is_complete: bool
    """Whether that run has nothing left to do."""
    began: datetime
    """When the run was begun; local time."""

    def changes(self, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What of the settings is not as the run was begun with."""
        return resume.changes(resume.read_settings(self.folder), settings) if self.goes_on else {}


def open_folder(job: Job, config: TrainingConfig, settings: Mapping[str, Any], kind: str, stack: ExitStack) -> Opened:
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
        opened = Opened(folder, found is not None, False, began)
        changed = resume.without_parallel(opened.changes(settings))
        return {
            "path": str(folder.path),
            "goes_on": opened.goes_on,
            "is_complete": earlier is not None and earlier.status == "done" and not changed,
            "began": began.isoformat(),
        }

    told = job.from_first(first, config.parallel.timeout)
    if job.is_first:
        job.tell(RUN_FOLDER, told["path"])
    return Opened(
        RunFolder(Path(told["path"])), told["goes_on"], told["is_complete"], datetime.fromisoformat(told["began"])
    )
