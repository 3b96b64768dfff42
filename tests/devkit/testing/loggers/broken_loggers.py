"""A logger that keeps all its promises, and for each promise one that breaks it and no other."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm import LoggerSpec


def read(run_dir: Path) -> dict[int, dict[str, float | None]]:
    """What a run folder holds."""
    found: dict[int, dict[str, float | None]] = {}
    file = run_dir / "log.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        record = json.loads(line)
        found.setdefault(record["step"], {}).update(record["metrics"])
    return found


class Good:
    """A line for each call."""

    mode = "a"
    encoding = "utf-8"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.path = self.find(run_dir) / "log.jsonl"
        self.file = self.path.open(self.mode, encoding=self.encoding)

    def find(self, run_dir: Path) -> Path:
        return run_dir

    def resume(self, step: int) -> None:
        self.file.close()
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and self.is_kept(json.loads(line)["step"], step)]
        self.path.write_text("".join(kept), encoding="utf-8")
        self.file = self.path.open("a", encoding=self.encoding)

    def is_kept(self, step: int, last: int) -> bool:
        return step <= last

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.file.write(self.line(step, metrics) + "\n")
        self.file.flush()

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        return json.dumps({"step": step, "metrics": dict(metrics)}, ensure_ascii=False)

    def close(self) -> None:
        self.file.close()


class WithoutConfig(Good):
    """Cannot be made as loggers are."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, {})


class CannotClose:
    """Has no `close`."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


class FixedColumns(Good):
    """Has the columns of its first line, as a table in a CSV file does."""

    columns: tuple[str, ...] = ()

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        self.columns = self.columns or tuple(metrics)
        csv.DictWriter(io.StringIO(), self.columns).writerow(dict(metrics))
        return super().line(step, metrics)


class CountsFromOne(Good):
    """Takes step 0 for a mistake."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step < 1:
            raise ValueError(f"step {step} is none")
        super().log(step, metrics)


class OneCallAStep(Good):
    """Takes the second call of a step for a mistake."""

    last = -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.last:
            raise ValueError(f"step {step} was logged already")
        self.last = step
        super().log(step, metrics)


class AsciiNames(Good):
    """Writes names in ASCII alone."""

    encoding = "ascii"


class ShortNames(Good):
    """Cuts names at 64 characters."""

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        return super().line(step, {name[:64]: value for name, value in metrics.items()})


class StrictJson(Good):
    """Refuses what JSON lacks."""

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        return json.dumps({"step": step, "metrics": dict(metrics)}, ensure_ascii=False, allow_nan=False)


class FewDigits(Good):
    """Writes six digits of a number."""

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        return super().line(step, {name: float(f"{value:.6g}") for name, value in metrics.items()})


class AddsTheStep(Good):
    """Adds its own key to the metrics that other loggers get after it."""

    def log(self, step: int, metrics: Any) -> None:
        super().log(step, metrics)
        metrics["step"] = step


class TakesTheName(Good):
    """Takes a setting out of the configuration."""

    def __init__(self, run_dir: Path, config: Any) -> None:
        super().__init__(run_dir, config)
        self.name = config.pop("name", None)


class InWorkingDirectory(Good):
    """Keeps a second file wherever the run was started."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        Path("last-step.txt").write_text(str(step), encoding="utf-8")


class LateOpener(Good):
    """Opens its file with the first call, and closes it even if there was none."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.path = run_dir / "log.jsonl"
        self.path.touch()
        self.late: Any = None

    def resume(self, step: int) -> None:
        super().__init__(self.path.parent, {})
        super().resume(step)
        self.late = self.file

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.file = self.late = self.late or self.path.open("a", encoding="utf-8")
        super().log(step, metrics)

    def close(self) -> None:
        self.late.close()


class LeavesOpen(Good):
    """Leaves a file open for good."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        super().__init__(run_dir, config)
        self.descriptor = os.open(self.path, os.O_RDONLY)


class StillSending(Good):
    """Has a thread that goes on after the end."""

    def close(self) -> None:
        super().close()
        threading.Thread(target=threading.Event().wait, args=(1.5,), name="sender").start()


class Loud(Good):
    """Prints what it is told. No promise is against it, and the report is none the worse."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        sys.stdout.write(f"step {step}\n")


class Overwrites(Good):
    """Begins its file anew each time."""

    mode = "w"


class ForgetsTheStepItself(Good):
    """Forgets one step too many."""

    def is_kept(self, step: int, last: int) -> bool:
        return step < last


class ForgetsNothing(Good):
    """Takes no notice of a run that continues."""

    def resume(self, step: int) -> None:
        pass


class ForgetsTooLittle(Good):
    """Keeps one step too many."""

    def is_kept(self, step: int, last: int) -> bool:
        return step <= last + 1


class NeverAnew(Good):
    """Takes -1 for "not known"."""

    def is_kept(self, step: int, last: int) -> bool:
        return last < 0 or step <= last


class KnowsItsPlace(Good):
    """Writes down where its folder was when the run began."""

    def find(self, run_dir: Path) -> Path:
        note = run_dir / "place.txt"
        if not note.exists():
            note.write_text(str(run_dir), encoding="utf-8")
        place = Path(note.read_text(encoding="utf-8"))
        place.mkdir(parents=True, exist_ok=True)
        return place


class WritesAtTheEnd(Good):
    """Keeps everything in memory until the end."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.file.write(self.line(step, metrics) + "\n")


class ReadsEveryLine(Good):
    """Believes that its last line is whole."""

    def resume(self, step: int) -> None:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            json.loads(line)
        super().resume(step)


def spec(logger: type = Good, about: str = "for tests") -> LoggerSpec:
    return LoggerSpec(logger, about)


BROKEN: tuple[tuple[str, LoggerSpec], ...] = (
    ("description", spec(about="")),
    ("construction", spec(WithoutConfig)),
    ("construction", spec(CannotClose)),
    ("new-names", spec(FixedColumns)),
    ("steps", spec(CountsFromOne)),
    ("steps", spec(OneCallAStep)),
    ("names", spec(AsciiNames)),
    ("names", spec(ShortNames)),
    ("values", spec(StrictJson)),
    ("values", spec(FewDigits)),
    ("inputs", spec(AddsTheStep)),
    ("inputs", spec(TakesTheName)),
    ("run-folder", spec(InWorkingDirectory)),
    ("close", spec(LateOpener)),
    ("close", spec(LeavesOpen)),
    ("background", spec(StillSending)),
    ("continues", spec(Overwrites)),
    ("continues", spec(ForgetsTheStepItself)),
    ("resume", spec(ForgetsNothing)),
    ("resume", spec(ForgetsTooLittle)),
    ("resume-anew", spec(NeverAnew)),
    ("moved", spec(KnowsItsPlace)),
    ("killed", spec(WritesAtTheEnd)),
    ("torn-file", spec(ReadsEveryLine)),
)
"""The only check that fails, and the logger. What imports torch is in `heavy_plugin.py`."""
