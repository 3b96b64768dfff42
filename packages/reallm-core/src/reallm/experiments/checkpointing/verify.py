"""Checks what a run has saved: every file against its checksum, and the state against what it may hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reallm.checkpoint.checksums import Compared, verify_checksums
from reallm.checkpoint.reader import open_checkpoint
from reallm.errors import CheckpointError, ReallmError
from reallm.experiments.checkpointing.train_state import read_rank_file, read_state
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder, has_state, n_ranks
from reallm.hf.checkpoint_folder import is_model_folder, read_hf_config
from reallm.hf.file_names import CONFIG_NAME


@dataclass(frozen=True)
class Verified:
    """What was found about a checkpoint."""

    folder: Path
    compared: Compared | None
    """What was compared with checksums; None if something does not fit."""
    step: int | None
    """The step of the training state; None if it has none."""
    problem: str | None
    """What is wrong, as one line; None if nothing is."""


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoints that a path names: itself, or all of a run.

    Raises:
        CheckpointError: it is neither a checkpoint nor a run that has saved one.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; give the folder of a run or of a checkpoint")
    saved = RunFolder(path.parent if path.name == "checkpoints" else path).saved_steps()
    if saved:
        return list(saved.values())
    if is_model_folder(path) or has_state(path):
        return [path]
    raise CheckpointError(f"{path} holds no checkpoint; give the folder of a run or of a checkpoint")


def verify(paths: list[Path]) -> Iterator[Verified]:
    """Check checkpoints one after the other."""
    for path in paths:
        compared = step = problem = None
        try:
            compared = verify_checksums(path, (TRAINING_STATE,))
            if is_model_folder(path):
                _read_headers(path)
            if has_state(path):
                step = read_state(path)[0].step
                for rank in range(1, n_ranks(path)):
                    read_rank_file(path, rank)
        except ReallmError as error:
            problem = str(error)
        yield Verified(path, compared, step, problem)


def _read_headers(folder: Path) -> None:
    """Raise CheckpointError unless the configuration and the headers of the weights can be read."""
    if (folder / CONFIG_NAME).is_file():
        read_hf_config(folder)
        open_checkpoint(folder)
