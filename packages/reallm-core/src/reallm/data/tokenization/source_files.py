"""The files of a source: their number of rows, and a fingerprint of their content."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from reallm.atomic_files import atomic_write
from reallm.data.row_sources import Source, parts_of
from reallm.errors import DataError, short_reason
from reallm.foreign_files import read_json_object

LINES = (".jsonl", ".csv", ".tsv")
"""Extensions of files with a row on each line."""

_CHUNK = 1 << 22
_SETTLED = 2.0
"""Seconds after which a change of a file surely has another time stamp than what was read."""


def source_files(source: Source) -> dict[str, Path] | None:
    """The files that rows are read from, by the names that they have in ids; None if rows come from anything else.

    Raises:
        DataError: a file does not exist, or cannot be one with rows.
    """
    files = {part.prefix: part.file for part in parts_of(source)}
    return {name: file for name, file in files.items() if file is not None} if None not in files.values() else None


def count_rows(source: Source) -> int | None:
    """Number of rows of a source, if it can be found quickly; too high if there are blank lines. For progress."""
    files = source_files(source)
    counts = [_count_rows(path) for path in (files or {}).values()]
    known = [count for count in counts if count is not None]
    return sum(known) if files and len(known) == len(files) else None


def _count_rows(path: Path) -> int | None:
    with suppress(Exception):  # what is wrong with the file is told by those who read it
        if path.name.lower().endswith(".parquet"):
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(path).num_rows)
        if path.name.lower().endswith(LINES):
            with path.open("rb") as file:
                return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))
    return None


def fingerprint(files: Mapping[str, Path], memo_folder: Path | None) -> str:
    """SHA-256 of the names and contents of files.

    Reading gigabytes at each start would take long, so the hash of a file is remembered in `memo_folder`, if there is
    one, and used as long as the file's size, inode and times of change are the same. Every write changes `ctime`, which
    no program can set back; a file that was changed within the last seconds is not remembered, because time stamps are
    coarse.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name}\0{_file_hash(file, memo_folder)}\0".encode())
    return digest.hexdigest()


def _file_hash(path: Path, memo_folder: Path | None) -> str:
    real = Path(os.path.realpath(path))
    name = f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
    memo = None if memo_folder is None else memo_folder / name
    try:
        identity = _identity(real)
        if memo is not None and (known := _remembered(memo, identity)) is not None:
            return known
        with real.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        is_settled = _identity(real) == identity and time.time() - identity["ctime_ns"] / 1e9 > _SETTLED
        if memo is not None and is_settled:
            with suppress(DataError), atomic_write(memo) as temporary:
                temporary.write_text(json.dumps({"identity": identity, "sha256": found}), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {short_reason(error)}") from error
    return found


def _remembered(memo: Path, identity: Mapping[str, int]) -> str | None:
    """The hash of the file with this identity, if it is remembered."""
    with suppress(DataError):
        known = read_json_object(memo, error=DataError)
        if known.get("identity") == identity and isinstance(known.get("sha256"), str):
            return str(known["sha256"])
    return None


def _identity(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {name: getattr(stat, f"st_{name}") for name in ("dev", "ino", "size", "mtime_ns", "ctime_ns")}
