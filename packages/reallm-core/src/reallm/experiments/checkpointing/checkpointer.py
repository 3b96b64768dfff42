"""Saves a run in the background: a thread writes the parameters while the next step computes with them.

Nothing is copied. A step only reads the parameters until its gradients are computed; before it changes them, it waits
until the writer has read them all (`TrainEngine.before_optimizer_step`). Making the written files durable and renaming
the folder, which takes longer, overlaps with further steps.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from reallm.atomic_files import errors_name, remove_folder
from reallm.checkpoint.adapter_save import ModelExport
from reallm.checkpoint.checksums import write_checksums
from reallm.checkpoint.distributed_save import atomic_folder_distributed
from reallm.checkpoint.hashing import Checksums
from reallm.errors import DataError
from reallm.experiments.checkpointing.state_file import Best
from reallm.experiments.checkpointing.train_state import (
    TrainState,
    follower_folder,
    write_state,
)
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder, has_state
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import fail_together, is_leader


@dataclass
class _Save:
    path: Path
    best: Best | None
    is_read: threading.Event = field(default_factory=threading.Event)
    """Set when the models and engines have been read completely."""
    error: Exception | None = None


class Checkpointer:
    """Writes checkpoints with training state into a run folder, one at a time, and removes old ones.

    Args:
        folder: folder of the run.
        keep_last: number of newest checkpoints to keep, in addition to the best; None: all.
        in_background: write in a thread. `wait_until_read` must then be called before saved tensors are changed.
        newest: the checkpoint that the run is resumed from.
        best: the best one at that time.
        mesh: mesh of all ranks of the job, which save together; the first one links and removes checkpoints. None: this
            process saves alone.

    Raises:
        DataError: the links to the newest and the best checkpoint cannot be written.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        keep_last: int | None,
        in_background: bool,
        newest: Path | None = None,
        best: Best | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self._folder, self._keep_last, self._in_background = folder, keep_last, in_background
        self.newest = newest
        """The newest complete checkpoint."""
        self.best = best
        """The best evaluation when it was saved."""
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None
        self._mesh = mesh
        with fail_together(mesh):
            if is_leader(mesh):
                folder.sweep()
                if newest is not None:  # the run may have ended before they were written
                    self._link(newest, best)

    def save(
        self,
        exports: Mapping[str, ModelExport | None],
        state: TrainState,
        followers: Mapping[str, ModelExport | None] | None = None,
    ) -> None:
        """Start to save, or save at once if not in the background. Call `finish` first for the previous save.

        Args:
            exports: exports by role, the same roles on all ranks; None on a rank that holds nothing of the model. A
                single one is the checkpoint itself, several are folders in it. All ranks call this at the same time.
            state: training state of the run.
            followers: exports of the roles whose weights follow those of trained ones; a part of the training state.
        """
        assert self._save is None, "an earlier save has not been finished"
        self._save = save = _Save(self._folder.checkpoint(state.step), state.best)
        if not self._in_background:
            self._write(save, exports, state, followers or {})
            return
        # not a daemon: a process that exits normally finishes the checkpoint first
        arguments = (save, exports, state, followers or {})
        self._thread = threading.Thread(target=self._write, args=arguments, name="saving")
        self._thread.start()

    def wait_until_read(self) -> None:
        """Block until parameters and optimizer state may be changed."""
        if self._save is not None:
            self._save.is_read.wait()

    @property
    def has_failed(self) -> bool:
        """Whether the save in progress has failed; `finish` raises its error."""
        return self._save is not None and self._save.error is not None

    @property
    def is_written(self) -> bool:
        """Whether a save that was not made in the background is complete; `finish` acknowledges it."""
        return self._save is not None and self._thread is None and self._save.error is None

    def finish(self) -> bool:
        """Wait for the save in progress; returns whether there was one.

        Raises:
            DataError: the checkpoint could not be written; earlier ones still exist.
        """
        if self._thread is not None:
            self._thread.join()
        save, self._save, self._thread = self._save, None, None
        if save is None:
            return False
        if save.error is not None:
            raise save.error
        self.newest, self.best = save.path, save.best
        return True

    def _write(
        self,
        save: _Save,
        exports: Mapping[str, ModelExport | None],
        state: TrainState,
        followers: Mapping[str, ModelExport | None],
    ) -> None:
        try:
            with errors_name(save.path):
                self._write_all(save, exports, state, followers)
        except Exception as error:  # a thread must not raise: `finish` does
            save.error = error
        finally:
            save.is_read.set()

    def _write_all(
        self,
        save: _Save,
        exports: Mapping[str, ModelExport | None],
        state: TrainState,
        followers: Mapping[str, ModelExport | None],
    ) -> None:
        mesh = self._mesh
        checksums: Checksums = {}
        with atomic_folder_distributed(save.path, mesh) as new:
            for role, export in exports.items():
                with fail_together(mesh):
                    if export is not None:
                        # the original checkpoint may be gone by now; tokenizer files are copied from save to save
                        before = None if self.newest is None else _within(self.newest, role, len(exports))
                        _write_model(_within(new, role, len(exports)), export, before or export.carry_from, checksums)
            write_state(new, state, exports, mesh, checksums)
            for role, export in followers.items():
                with fail_together(mesh):
                    if export is not None:
                        _write_model(follower_folder(new, role), export, None, checksums)
            save.is_read.set()
            write_checksums(new, checksums, (TRAINING_STATE,), mesh)
        with fail_together(mesh):
            if is_leader(mesh):
                self._link(save.path, state.best)

    def _link(self, newest: Path, best: Best | None) -> None:
        """Point the links `last` and `best` at their checkpoints, and remove old checkpoints."""
        self._folder.point(self._folder.last_checkpoint, newest)
        best_path = None if best is None else self._folder.path / best.checkpoint
        if best_path is not None and best_path.is_dir():
            self._folder.point(self._folder.best_checkpoint, best_path)
        self._prune(newest, best_path)

    def _prune(self, newest: Path, best: Path | None) -> None:
        """Remove old checkpoints, and the training state of kept ones but the newest, the only one to resume from."""
        older = [path for path in self._folder.saved_steps().values() if path != newest]
        kept = older if self._keep_last is None else older[len(older) - (self._keep_last - 1) :]
        for path in older:
            with suppress(DataError):  # tried again after the next save
                if path in kept or path == best:
                    if has_state(path):
                        remove_folder(path / TRAINING_STATE)
                else:
                    remove_folder(path)


def _write_model(folder: Path, export: ModelExport, carry_from: Path | None, checksums: Checksums) -> None:
    """Write a model into a folder; all ranks of its layout call this."""
    folder.mkdir(parents=True, exist_ok=True)
    dataclasses.replace(export, carry_from=carry_from).write_into(folder, checksums)


def _within(checkpoint: Path, role: str, n_roles: int) -> Path:
    return checkpoint if n_roles == 1 else checkpoint / role
