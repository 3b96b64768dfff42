"""Information about a run, read from its folder: status, steps, losses, checkpoints. Imports no torch."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from reallm.errors import DataError, ReallmError, nearest
from reallm.experiments.runs.files import is_run, json_object, last_json_lines
from reallm.experiments.runs.folder import RunFolder, has_state
from reallm.experiments.runs.metrics import is_evaluation, is_loss, is_number, is_reward
from reallm.file_locks import is_locked
from reallm.foreign_files import reading
from reallm.machine_errors import as_machine_error, is_of_disk, raise_shortage
from reallm.notices import notify_once

Status = Literal["running", "done", "stopped", "failed", "killed"]


class RunError(ReallmError):
    """Raised for a run that does not exist, or that lacks data needed of it."""


@dataclass(frozen=True)
class Best:
    """The best value of a run's `best_metric`, and the checkpoint kept for it."""

    metric: str
    value: float
    step: int
    checkpoint: Path | None


@dataclass(frozen=True)
class RunInfo:
    """A run, read from its folder; a field is None if the folder does not give its value."""

    path: Path
    name: str
    """The folder's name, or its path relative to the folder that was listed."""
    status: Status
    """`stopped`: by the user; `failed`: with the error in `error`; `killed`: the process did not record its end."""
    algorithm: str | None
    steps: int
    total_steps: int | None
    epochs: float | None
    metrics: Mapping[str, float]
    """The last value of each metric; NaN if it was NaN or infinite."""
    best: Best | None
    checkpoint: Path | None
    """The newest checkpoint, if it still exists."""
    started: datetime | None
    """Local time of the start."""
    seconds: float | None
    error: str | None
    stop_reason: str | None
    """Why a run that is done ended before its last step; None if it did not."""
    train_samples: int | None
    valid_samples: int | None
    parameters: Mapping[str, int]
    """Number of parameters of each model, by role."""
    question: str | None
    """The end of a `reallm generate` command that asks the model something like its data."""

    @property
    def loss(self) -> float | None:
        """The last training loss, of the first train call if there are several."""
        return _first(value for name, value in self.metrics.items() if is_loss(name) and not is_evaluation(name))

    @property
    def eval_loss(self) -> float | None:
        """The last validation loss, of the first train call if there are several."""
        return _first(value for name, value in self.metrics.items() if is_loss(name) and is_evaluation(name))

    @property
    def reward(self) -> float | None:
        """The last reward of training."""
        return _first(value for name, value in self.metrics.items() if is_reward(name) and not is_evaluation(name))

    @property
    def eval_reward(self) -> float | None:
        """The last reward on validation data."""
        return _first(value for name, value in self.metrics.items() if is_reward(name) and is_evaluation(name))

    @cached_property  # it reads the run's settings
    def resume_command(self) -> str | None:
        """The command that resumes the run; None if it is done, still running, or has saved no state."""
        if self.status in ("done", "running") or self.checkpoint is None or self.algorithm is None:
            return None
        if not has_state(self.checkpoint):
            return None
        return RunFolder(self.path).resume_command(self.algorithm, is_own=False)

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON types, with NaN as null. A stable format: keys are only ever added."""
        found = {name: getattr(self, name) for name in ("loss", "eval_loss", "reward", "eval_reward")}
        fields = {**asdict(self), **found, "resume": self.resume_command}
        plain: dict[str, Any] = json.loads(json.dumps(fields, default=_text), parse_constant=lambda _: None)
        return plain


def read_run(path: Path, *, name: str | None = None) -> RunInfo:
    """Read the run in the folder `path`.

    Raises:
        RunError: there is no run in the folder; names the one that was probably meant.
        DataError, OSError: the disk does not give what is there.
    """
    if not is_run(path):
        raise _no_run(path)
    summary = json_object(RunFolder(path).summary)
    status = _status(path, summary)
    # The summary of a running or killed run is as old as its last evaluation or save.
    recent = last_json_lines(RunFolder(path).metrics) if status in ("running", "killed") else []
    return RunInfo(
        path=path,
        name=name or path.resolve().name,
        status=status,
        algorithm=_typed(str, summary.get("algorithm")),
        steps=_steps(summary, recent),
        total_steps=_typed(int, summary.get("total_steps")),
        epochs=_number(_latest("epoch", recent, summary.get("epochs"))),
        metrics=_metrics(summary, recent),
        best=_best(path, summary.get("best")),
        checkpoint=_existing(path, summary.get("checkpoint")),
        started=_started(path, summary.get("started")),
        seconds=_seconds(path, summary.get("seconds"), status),
        error=_typed(str, summary.get("error")),
        stop_reason=_typed(str, summary.get("stop_reason")),
        question=_words(summary.get("question")),
        train_samples=_typed(int, summary.get("train_samples")),
        valid_samples=_typed(int, summary.get("valid_samples")),
        parameters=_counts(summary.get("parameters")),
    )


def list_runs(folder: Path) -> list[RunInfo]:
    """The runs in `folder` and one level below it (`demo-20261124-140000/run`), newest first.

    One that the disk does not give is left out, and a note says so.
    """
    runs = []
    for name, path in run_folders(folder).items():
        try:
            runs.append(read_run(path, name=name))
        except (DataError, OSError) as error:
            _leave_out(name, error)
    return sorted(runs, key=lambda run: (run.started or datetime.min, run.name), reverse=True)


def run_folders(folder: Path) -> dict[str, Path]:
    """The folders of `list_runs` by name; does not read files in them."""
    found = {}
    for path in _folders(folder):
        try:
            inner = [path] if is_run(path) else [below for below in _folders(path) if is_run(below)]
        except OSError as error:
            _leave_out(path.name, error)
            continue
        found.update({str(one.relative_to(folder)): one for one in inner})
    return found


def _leave_out(name: str, error: Exception) -> None:
    raise_shortage(error)
    notify_once(f"{name} is left out: {as_machine_error(error)}")


def find_run(name: str, folder: Path) -> RunInfo:
    """The run of this name in `folder`, or else the one whose path is `name`.

    Raises:
        RunError: neither exists; names the one that was probably meant.
    """
    path = Path(name)
    if is_run(folder / path):
        return read_run(folder / path, name=str(path))
    if is_run(path):
        return read_run(path, name=str(path.relative_to(folder) if path.is_relative_to(folder) else path))
    is_path = path.is_dir() or (len(path.parts) > 1 and path.parent.is_dir())
    raise _no_run(path if is_path else folder / path)


def _no_run(path: Path) -> RunError:
    if path.is_dir():
        inner = run_folders(path)
        if inner:
            runs = "a run" if len(inner) == 1 else f"{len(inner)} runs"
            return RunError(f"{path} is not a run, but holds {runs}; write {path / next(iter(inner))}")
        return RunError(
            f"{path} is not a run: it has neither {RunFolder(path).summary.name} nor {RunFolder(path).metrics.name}"
        )
    if not path.parent.is_dir():
        return RunError(f"no run {path}: there is no folder {path.parent}")
    near = nearest(path.name, names := run_folders(path.parent))
    if near:
        return RunError(f"no run {path}; did you mean {names[near]}?")
    return RunError(f"no run {path}; `reallm runs {path.parent}` lists those that are there")


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _status(path: Path, summary: Mapping[str, Any]) -> Status:
    written = summary.get("status")
    if written in ("done", "stopped", "failed"):
        return written
    if written is None and "interrupted" in summary:  # written by a version that wrote the summary only at the end
        return "stopped" if summary["interrupted"] else "done"
    locked = is_locked(RunFolder(path).lock_file)
    if locked is None:
        locked = written == "running"
    return "running" if locked else "killed"


def _steps(summary: Mapping[str, Any], recent: list[dict[str, Any]]) -> int:
    return _typed(int, _latest("step", recent, summary.get("steps"))) or 0


def _latest(name: str, recent: list[dict[str, Any]], otherwise: Any) -> Any:
    return next((record[name] for record in reversed(recent) if name in record), otherwise)


def _metrics(summary: Mapping[str, Any], recent: list[dict[str, Any]]) -> dict[str, float]:
    written = summary.get("metrics")
    found: dict[str, Any] = dict(written) if isinstance(written, dict) else {}
    for record in recent:
        found.update(record)
    return {
        name: math.nan if value is None else value
        for name, value in found.items()
        if name not in ("step", "epoch") and (value is None or is_number(value))
    }


def _best(path: Path, written: Any) -> Best | None:
    if not isinstance(written, dict) or not is_number(written.get("value")):
        return None
    checkpoint = _existing(path, written.get("checkpoint"))
    return Best(str(written.get("metric")), written["value"], _typed(int, written.get("step")) or 0, checkpoint)


def _existing(path: Path, relative: Any) -> Path | None:
    """The folder below that of the run which its summary names; None if it is not there, or elsewhere."""
    if not isinstance(relative, str):
        return None
    folder = path / relative
    try:
        is_there = folder.is_dir() and folder.resolve().is_relative_to(path.resolve())
    except (OSError, ValueError) as error:  # no path at all
        if is_of_disk(error):
            raise
        return None
    return folder if is_there else None


def _words(text: Any) -> str | None:
    """The end of a command line, quoted anew: another's text must not begin a second command where it is pasted."""
    with suppress(ValueError):  # quotes that do not end
        return shlex.join(shlex.split(text)) if isinstance(text, str) else None
    return None


def _started(path: Path, written: Any) -> datetime | None:
    with suppress(DataError), reading("the time", error=DataError):
        return datetime.fromisoformat(written).astimezone().replace(tzinfo=None)
    first = _modified_at(RunFolder(path).config) or _modified_at(
        RunFolder(path).metrics
    )  # the former is written once, as a run starts
    return datetime.fromtimestamp(first) if first else None


def _seconds(path: Path, written: Any, status: Status) -> float | None:
    """The time spent on the run; if its end was not recorded, until now or until the last logged step."""
    if not is_number(written):
        return None
    if status not in ("running", "killed"):
        return float(written)
    until = time.time() if status == "running" else _modified_at(RunFolder(path).metrics)
    return float(written + max(0.0, until - _modified_at(RunFolder(path).summary)))


def _modified_at(path: Path) -> float:
    """Seconds since 1970; 0 if the file does not exist."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _counts(written: Any) -> dict[str, int]:
    return (
        {str(name): count for name, count in written.items() if is_number(count)} if isinstance(written, dict) else {}
    )


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _typed(expected: type, value: Any) -> Any:
    """The value if it has the expected type; else None."""
    return value if isinstance(value, expected) and not isinstance(value, bool) else None


def _first(values: Iterable[float]) -> float | None:
    return next(iter(values), None)


def _text(value: Path | datetime) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
