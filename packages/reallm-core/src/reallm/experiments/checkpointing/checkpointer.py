"""Saves a run while it goes on: the writing thread reads the parameters while the next step computes with them.

Nothing is copied. A step only reads the parameters until its gradients are there; before it changes them, it waits
until the writer has read them all (`TrainEngine.before_optimizer_step`). Making the written files durable and giving
the folder its name, the longer half, is done meanwhile.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from reallm.atomic_files import remove_folder, sweep
from reallm.checkpoint.distributed_save import ShardedExport, atomic_folder_distributed
from reallm.checkpoint.save import Export
from reallm.errors import DataError
from reallm.experiments.checkpointing.train_state import Best, TrainState, has_state, spread_over, write_state
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder
from reallm.parallel.object_collectives import fail_together


@dataclass
class _Job:
    path: Path
    read: threading.Event = field(default_factory=threading.Event)
    """Set when nothing more is read from the model."""
    error: Exception | None = None


class Checkpointer:
    """Writes checkpoints with training state into a run folder, one at a time, and removes those not to be kept.

    Args:
        folder: of the run.
        keep_last: how many of the newest checkpoints are kept, beside the best; None: all.
        in_background: write in a thread. Whoever changes what is saved must call `wait_until_read` before.
        newest: the checkpoint that the run goes on from.
        is_rank0: whether this is rank 0, which links and removes checkpoints.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        keep_last: int | None,
        in_background: bool,
        newest: Path | None = None,
        is_rank0: bool = True,
    ) -> None:
        self._folder, self._keep_last, self._in_background = folder, keep_last, in_background
        self.newest = newest
        """The newest whole checkpoint."""
        self._job: _Job | None = None
        self._thread: threading.Thread | None = None
        self._is_rank0 = is_rank0
        if is_rank0:
            sweep(folder.checkpoints)

    def save(self, exports: Mapping[str, Export | ShardedExport], state: TrainState) -> None:
        """Begin to save, or save where that is not done in the background. `finish` must have ended the save before.

        Args:
            exports: by role; a single one makes the checkpoint itself, several make folders in it. All ranks of those
                that are spread save at the same time.
            state: what a resumed run needs.
        """
        assert self._job is None, "an earlier save has not been finished"
        self._job = job = _Job(self._folder.checkpoint(state.step))
        if not self._in_background:
            self._write(job, exports, state)
            return
        # not a daemon: a process that ends in good order ends with a whole checkpoint
        self._thread = threading.Thread(target=self._write, args=(job, exports, state), name="saving")
        self._thread.start()

    def wait_until_read(self) -> None:
        """Return when parameters and optimizer may change."""
        if self._job is not None:
            self._job.read.wait()

    @property
    def has_failed(self) -> bool:
        """Whether the save has ended with an error, which `finish` raises."""
        return self._job is not None and self._job.error is not None

    def finish(self) -> None:
        """Wait for the end of the save, if there is one.

        Raises:
            DataError: the checkpoint could not be written; what was saved before is still there.
        """
        if self._thread is not None:
            self._thread.join()
        job, self._job, self._thread = self._job, None, None
        if job is None:
            return
        if job.error is not None:
            raise job.error
        self.newest = job.path

    def _write(self, job: _Job, exports: Mapping[str, Export | ShardedExport], state: TrainState) -> None:
        mesh = spread_over(exports)
        try:
            with atomic_folder_distributed(job.path, mesh) as new:
                for role, export in exports.items():
                    target = new if len(exports) == 1 else new / role
                    target.mkdir(exist_ok=True)
                    # the checkpoint that the model came from may be gone by now; the tokenizer goes from save to save
                    source = export.carry_from if self.newest is None else _within(self.newest, role, len(exports))
                    dataclasses.replace(export, carry_from=source).write_into(target)
                write_state(new, state, exports)
                job.read.set()
            with fail_together(mesh):
                if self._is_rank0:
                    self._point(job.path, state.best)
        except Exception as error:  # also what a thread may not raise: it is handed to `finish`
            job.error = error
        finally:
            job.read.set()

    def _point(self, newest: Path, best: Best | None) -> None:
        """Let the names of the newest and the best lead there, and remove what is not to be kept."""
        self._folder.point(self._folder.last_checkpoint, newest)
        best_path = None if best is None else self._folder.path / best.checkpoint
        if best_path is not None:
            self._folder.point(self._folder.best_checkpoint, best_path)
        self._prune(newest, best_path)

    def _prune(self, newest: Path, best: Path | None) -> None:
        """Only the newest keeps its training state; of the others, those are removed that are not to be kept."""
        older = [path for path in self._folder.saved_steps().values() if path != newest]
        kept = older if self._keep_last is None else older[len(older) - (self._keep_last - 1) :]
        for path in older:
            with suppress(DataError):  # what cannot be removed now is removed after the next save
                if path in kept or path == best:
                    if has_state(path):
                        remove_folder(path / TRAINING_STATE)
                else:
                    remove_folder(path)


def _within(checkpoint: Path, role: str, n_roles: int) -> Path:
    return checkpoint if n_roles == 1 else checkpoint / role
