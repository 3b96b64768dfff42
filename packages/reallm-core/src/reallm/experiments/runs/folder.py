"""The folder of a run: paths of its settings, metrics, checkpoints and reports, and the lock of its process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from reallm.atomic_files import atomic_write, errors_name, sweep
from reallm.config.trust import TRUST_CODE, settings_that_name_code
from reallm.errors import ConfigError, DataError
from reallm.file_locks import holder, release, try_lock
from reallm.foreign_files import check_own_entries, read_bytes, reading
from reallm.foreign_yaml import parse_yaml
from reallm.other_users import planted_by

LOCK = ".lock"
TRAINING_STATE = "training_state"
"""Name of the folder in a checkpoint that holds the state to resume a run from."""


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of one run."""

    path: Path

    @classmethod
    def create(cls, output_dir: str | Path, name: str | None, default_prefix: str) -> RunFolder:
        """Make `output_dir/name`, or `output_dir/<prefix>-<date>-<time>` without a name.

        Raises:
            ConfigError: the folder exists and is not empty, or cannot be made.
        """
        parent = Path(output_dir)
        stem = name or f"{default_prefix}-{datetime.now():%Y%m%d-%H%M%S}"
        path = parent / stem
        try:
            number = 2
            while name is None and path.exists():  # two runs in one second
                path = parent / f"{stem}_{number}"
                number += 1
            if path.exists() and has_content(path):
                raise ConfigError(f"run folder {path} exists and is not empty; give another name=, or remove it")
            check_not_planted(path)
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run folder {path}: {error.strerror}; give another output_dir="
            ) from error
        return cls(path)

    def remove_if_empty(self) -> None:
        """Remove the folder if it contains nothing but a lock."""
        with contextlib.suppress(OSError):
            if [item.name for item in self.path.iterdir()] in ([], [LOCK]):
                self.lock_file.unlink(missing_ok=True)
                self.path.rmdir()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context that holds the lock of the folder. The system releases it when the process ends, however it ends.

        Raises:
            ConfigError: another process holds it, or what a run would write leads out of the folder.
        """
        check_own_entries(self.path, below=(self.checkpoints.name, self.precomputed.name), error=ConfigError)
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with errors_name(self.lock_file):
                is_ours = _lock(descriptor)
            if not is_ours:
                raise ConfigError(
                    f"another process is training in {self.path}{holder(descriptor)}; wait for it or stop it"
                )
            yield
        finally:
            release(descriptor)

    @property
    def lock_file(self) -> Path:
        """The file that is locked while a process trains in the folder."""
        return self.path / LOCK

    @property
    def config(self) -> Path:
        """All settings, as a file for `--config`."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """State of the run: status, steps, last metrics, checkpoints."""
        return self.path / "summary.json"

    @property
    def data(self) -> Path:
        """Statistics of the datasets."""
        return self.path / "data.json"

    @property
    def samples(self) -> Path:
        """Completions generated at evaluations, one JSON object a line."""
        return self.path / "samples.jsonl"

    @property
    def rollouts(self) -> Path:
        """Prompts of each training step with the answers to them, one JSON object a line."""
        return self.path / "rollouts.jsonl"

    @property
    def timeline(self) -> Path:
        """What each rank did in each step, and when, one JSON object a line."""
        return self.path / "timeline.jsonl"

    @property
    def precomputed(self) -> Path:
        """The folder of what was computed for all samples before training."""
        return self.path / "precomputed"

    @property
    def metrics(self) -> Path:
        """All metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def page(self) -> Path:
        """The summary page."""
        return self.path / "summary.html"

    @property
    def graph(self) -> Path:
        """The drawing of the algorithm's graph, if it has several calls."""
        return self.path / "graph.svg"

    @property
    def plot(self) -> Path:
        """The loss curves."""
        return self.path / "loss.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """A link to the newest checkpoint."""
        return self.checkpoints / "last"

    @property
    def best_checkpoint(self) -> Path:
        """A link to the best checkpoint."""
        return self.checkpoints / "best"

    def checkpoint(self, step: int) -> Path:
        """The HuggingFace checkpoint of the model after `step`."""
        return self.checkpoints / f"step-{step:06d}"

    def resume_command(self, algorithm: str | None, *, is_own: bool = True) -> str:
        """The command line that resumes the run: `reallm sft resume=runs/a`; `resume=runs/a` without an algorithm.

        Of a run that this user has started (`is_own`) it says that code in the settings is trusted, if they name any.
        A folder that is only looked at may be that of somebody else.
        """
        command = [] if algorithm is None else ["reallm", algorithm]
        trust = [TRUST_CODE] if is_own and self._names_code() else []
        return shlex.join([*command, f"resume={self.path}", *trust])

    def _names_code(self) -> bool:
        with contextlib.suppress(ConfigError), reading(self.config, error=ConfigError):
            return any(settings_that_name_code(parse_yaml(read_bytes(self.config).decode("utf-8"))))
        return False  # resuming says what is wrong with the file

    def saved_steps(self) -> dict[int, Path]:
        """Step -> checkpoint, for all saved checkpoints, in the order of steps."""
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        steps = [(step_of(path.name), path) for path in found]
        return dict(sorted((step, path) for step, path in steps if step is not None))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml`, which `--config` reads back."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        with atomic_write(self.config) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        _write_json(self.summary, summary)

    def write_data(self, data: Mapping[str, Any]) -> None:
        """Write `data.json`."""
        _write_json(self.data, data)

    def point(self, link: Path, checkpoint: Path) -> None:
        """Point `link` (`last_checkpoint`, `best_checkpoint`) at `checkpoint`; does nothing without symbolic links.

        Raises:
            DataError: the disk is full or damaged.
        """
        temporary = link.with_name(f".{link.name}")
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(checkpoint.name, target_is_directory=True)
            temporary.replace(link)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP):
                raise DataError(f"cannot write {link}: {error.strerror}") from error

    def sweep(self) -> None:
        """Remove what interrupted writes have left, as far as it can be removed."""
        for folder in (self.path, self.checkpoints):
            with contextlib.suppress(OSError):
                sweep(folder)


def check_not_planted(path: Path) -> None:
    """Raise a ConfigError if another user has made the folder of a run where everyone can."""
    if (user := planted_by(path)) is not None:
        raise ConfigError(f"the run folder {path} belongs to {user}; give another name= or output_dir=")


def has_state(checkpoint: Path) -> bool:
    """Whether a checkpoint is one that a run is resumed from."""
    return (checkpoint / TRAINING_STATE).is_dir()


def n_ranks(checkpoint: Path) -> int:
    """Number of processes that saved the training state of a checkpoint."""
    return 1 + len(list((checkpoint / TRAINING_STATE).glob(rank_file("*"))))


def rank_file(rank: int | str) -> str:
    """Name of the file in the training state for what a rank other than 0 has for itself."""
    return f"rank-{rank}.json"


def step_of(checkpoint: str) -> int | None:
    """The step in the name of a checkpoint, `step-000020` or `step-20`; None for another name."""
    match = re.fullmatch(r"step-(\d+)", checkpoint)
    return int(match[1]) if match else None


def _lock(descriptor: int, patience_s: float = 0.5) -> bool:
    """Try to acquire the lock; returns whether it was. A process that checks for a running run holds it briefly."""
    until = time.monotonic() + patience_s
    while not (is_ours := try_lock(descriptor)) and time.monotonic() <= until:
        time.sleep(0.01)
    return is_ours


def has_content(folder: Path) -> bool:
    """Whether a folder contains any non-hidden file; a process killed at its start may leave hidden ones."""
    return any(not item.name.startswith(".") for item in folder.iterdir())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
