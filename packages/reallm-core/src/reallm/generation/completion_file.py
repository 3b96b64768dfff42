"""A file of completions that is written row by row, survives a kill, and has its name only when it is whole.

Until then the rows are in a folder beside it, `completions.jsonl.partial/`, with the settings that they are made with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from reallm.appended_files import closing_without_error, write_all
from reallm.atomic_files import atomic_write, discard, errors_name
from reallm.errors import DataError
from reallm.file_locks import try_lock
from reallm.foreign_files import json_or_none, read_json_object
from reallm.other_users import planted_by
from reallm.printable import json_line

_ROWS, _SETTINGS = "rows.jsonl", "settings.json"
_CHUNK = 1 << 20


class CompletionFile:
    """The rows of a file of completions, appended in order; made by `open`."""

    def __init__(self, path: Path, rows: FileIO) -> None:
        self.path = path
        self.n_rows = _end_after_last_line(rows)
        """Number of rows that are written."""
        self._rows = rows

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[CompletionFile]:
        """Context with the file; it goes on with the rows that an earlier call with the same settings has written.

        Args:
            path: the file to make; its folder must exist.
            settings: what the rows depend on, as JSON values. `weights` identifies the model; its path, `model`, may
                change.
            overwrite: replace a file that exists, and forget rows that were written for it.

        Raises:
            DataError: the file exists or cannot be written, or rows were written with other settings, or another
                process is writing them.
        """
        settings = json.loads(json.dumps(settings))
        folder = partial_folder(path)
        has_rows = (folder / _ROWS).exists() and (folder / _ROWS).stat().st_size > 0
        if path.exists() and not overwrite and not has_rows:
            raise DataError(f"{path} exists; give another --output, or --overwrite to replace it")
        with errors_name(path):
            if (user := planted_by(folder)) is not None:
                raise DataError(f"{folder} belongs to {user}; give another --output")
            folder.mkdir(exist_ok=True)
            rows = (folder / _ROWS).open("a+b", buffering=0)
        with closing_without_error(rows):
            _lock(rows, folder / _ROWS, path)
            if has_rows and not overwrite:
                _check_settings(path, _read_settings(folder), settings)
            else:
                with errors_name(path):
                    os.ftruncate(rows.fileno(), 0)
            with atomic_write(folder / _SETTINGS) as temporary:
                temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            with errors_name(path):
                file = cls(path, rows)
            try:
                yield file
            finally:
                if file.n_rows == 0:
                    discard(folder)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are written.

        Raises:
            DataError: a row is damaged; names it.
        """
        with (partial_folder(self.path) / _ROWS).open("rb") as file:
            for number, line in enumerate(file, 1):
                row = json_or_none(line)
                if not isinstance(row, dict):
                    place = f"{partial_folder(self.path) / _ROWS}:{number}"
                    raise DataError(f"{place}: the row is damaged; start afresh with --overwrite")
                yield row

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the next row; a kill afterwards does not lose it."""
        line = json_line(row).encode()
        with errors_name(self.path):
            write_all(self._rows, line)
        self.n_rows += 1

    def finish(self) -> None:
        """Give the file its name; all rows are written."""
        folder = partial_folder(self.path)
        with errors_name(self.path):
            os.fsync(self._rows.fileno())
            (folder / _ROWS).replace(self.path)
        discard(folder)


def partial_folder(path: Path) -> Path:
    """The folder with the rows of a file that is not whole yet."""
    return path.with_name(f"{path.name}.partial")


def _end_after_last_line(rows: FileIO) -> int:
    """Cut a line off that a kill has left half written; returns the number of whole ones."""
    rows.seek(0)
    n_lines = end = position = 0
    while chunk := rows.read(_CHUNK):
        n_lines += chunk.count(b"\n")
        last = chunk.rfind(b"\n")
        end = position + last + 1 if last >= 0 else end
        position += len(chunk)
    if end < position:
        os.ftruncate(rows.fileno(), end)
    return n_lines


def _lock(rows: FileIO, rows_path: Path, path: Path) -> None:
    """Lock the opened file of rows, which must still be the one at `rows_path`; raise DataError if it is taken."""
    with errors_name(path):
        is_locked = try_lock(rows.fileno())
    if not is_locked or not rows_path.exists() or not os.path.samestat(os.fstat(rows.fileno()), rows_path.stat()):
        raise DataError(f"another process is writing {path}")


def _read_settings(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / _SETTINGS, "start afresh with --overwrite", error=DataError)


def _check_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise DataError if another model or setting made the rows that are written; names the first."""
    for key in now:
        if key == "model" or before.get(key) == now[key]:
            continue
        if key != "weights":
            made_with = f"{key}={json.dumps(before.get(key))}, not {json.dumps(now[key])}"
        elif before.get("model") == now["model"]:
            made_with = f"other weights of {now['model']}"
        else:
            made_with = f"another model, {before.get('model')}"
        raise DataError(
            f"the rows in {partial_folder(path)} were made with {made_with}; give the same to go on with them, or "
            "--overwrite to start afresh"
        )
