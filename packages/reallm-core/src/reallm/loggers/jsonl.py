"""Logs metrics as JSON lines, flushed at once: `{"step": 7, "train/loss": 1.25, ...}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from reallm.appended_files import append
from reallm.atomic_files import atomic_write, errors_name
from reallm.foreign_files import json_or_none


class JsonlLogger:
    """Appends to `metrics.jsonl` in the run folder. Numbers that JSON lacks (NaN, infinity) become null.

    Lines that cannot be written, since the disk is full, are written with later ones.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._unwritten = b""

    def resume(self, step: int) -> None:
        """Drop the lines of steps after `step`; see `drop_after`."""
        drop_after(self._path, step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line."""
        self._unwritten += (json.dumps({"step": step, **finite(metrics)}) + "\n").encode()
        with suppress(OSError):  # there may be room again when the next line comes
            self._write()

    def close(self) -> None:
        """Write what could not be written before.

        Raises:
            OSError: it cannot be written now either, and is lost.
        """
        if self._unwritten:
            self._write()

    def _write(self) -> None:
        append(self._path, self._unwritten)
        self._unwritten = b""


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics with None for NaN and infinity, which JSON lacks."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def drop_after(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and an incomplete last line, which a killed process has left.

    All other lines stay unchanged, byte for byte. The file, which need not exist, is replaced atomically.

    Raises:
        DataError: it cannot be read or written.
    """
    if not file.exists():
        return
    with errors_name(file):
        old = file.read_bytes()
    new = lines_up_to(step, old)
    if new != old:
        with atomic_write(file) as temporary:
            temporary.write_bytes(new)


def lines_up_to(step: int, content: bytes) -> bytes:
    """`content` without the lines of later steps, and without an incomplete last line.

    A line that is not a JSON object with a step was not written by this logger, and stays.
    """
    *lines, _incomplete = content.split(b"\n")
    return b"".join(line + b"\n" for line in lines if not _is_later(line, step))


def _is_later(line: bytes, step: int) -> bool:
    record = json_or_none(line)
    return isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] > step
