"""Reads the files of a run folder in any state: missing, of an older version, or cut off when a process died."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from reallm.errors import DataError
from reallm.experiments.runs.folder import RunFolder
from reallm.foreign_files import check_own, json_or_none, read_json_object, reading
from reallm.machine_errors import is_of_disk, naming


def is_run(folder: Path) -> bool:
    """Whether a run has written into `folder`."""
    return RunFolder(folder).summary.is_file() or RunFolder(folder).metrics.is_file()


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file does not exist or holds something else.

    Raises:
        DataError: the disk does not give it.
    """
    try:
        return read_json_object(path, error=DataError)
    except DataError as error:
        if is_of_disk(error.__cause__):
            raise
        return {}


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; none if it does not exist. A line that a killed process cut off is skipped.

    Raises:
        DataError: it is a link out of its folder, or no regular file.
        OSError: the disk does not give it.
    """
    with suppress(FileNotFoundError), naming(path), _own(path).open(encoding="utf-8", errors="replace") as file:
        yield from _objects(file)


def last_json_lines(path: Path, n_bytes: int = 1 << 18) -> list[dict[str, Any]]:
    """Like `json_lines`, but only for the last `n_bytes` of the file: some hundred lines, however long the file is.

    None if the file is a link out of its folder, or no regular file: what lists runs goes on to the next one.

    Raises:
        DataError, OSError: the disk does not give it.
    """
    try:
        with naming(path), _own(path).open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - n_bytes)
            file.seek(start)
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except DataError as error:
        if is_of_disk(error.__cause__):
            raise
        return []
    return list(_objects(lines[1:] if start else lines))


def _own(path: Path) -> Path:
    """The path, if reading it neither leads out of its folder nor waits for somebody; see `check_own`."""
    with reading(path, "remove it", error=DataError, passing=(FileNotFoundError,)):
        check_own(path, error=DataError)
    return path


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        value = json_or_none(line)
        if isinstance(value, dict):
            yield value
