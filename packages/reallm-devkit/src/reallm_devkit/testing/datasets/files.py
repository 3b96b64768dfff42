"""Files with rows, and what becomes of them when somebody else has written them badly. Pure functions on bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES = frozenset({".txt", ".text", ".csv", ".tsv"})
OBJECTS = frozenset({".json", ".jsonl"})
HEADED = frozenset({".csv", ".tsv"})
"""Extensions of formats whose first line is no row."""


@dataclass(frozen=True)
class RowFile:
    """The rows of a file in a format that can be taken apart: lines of text, or JSON objects.

    Attributes:
        suffix: of its name, which says the format.
        header: the line before the first row, where the format has one.
        rows: lines, or what is to be written for each object.
    """

    suffix: str
    header: tuple[str, ...]
    rows: tuple[str, ...]

    def content(self, rows: tuple[str, ...]) -> bytes:
        """The file with these rows."""
        if self.suffix == ".json":
            return ("[\n" + ",\n".join(rows) + "\n]\n").encode()
        return "".join(f"{line}\n" for line in (*self.header, *rows)).encode()

    @property
    def empty(self) -> bytes:
        """The file without rows; of JSON lines and of text a file without a byte."""
        return self.content(())

    @property
    def single(self) -> bytes:
        """The file with its first row alone."""
        return self.content(self.rows[:1])


def row_file(path: Path) -> RowFile | None:
    """The rows of a file; None if the format is not known, or the file is not as its name says."""
    suffix = path.suffix.lower()
    if suffix not in LINES | OBJECTS:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            rows = [json.dumps(row) for row in json.loads(text)]
        else:
            rows = [line for line in text.splitlines() if line.strip()]
    except (ValueError, TypeError):
        return None
    n_header = 1 if suffix in HEADED else 0
    return RowFile(suffix, tuple(rows[:n_header]), tuple(rows[n_header:])) if len(rows) > n_header else None


@dataclass(frozen=True)
class Spoilt:
    """A file with one bad row.

    Attributes:
        what: is wrong with the row.
        content: of the file.
        numbers: by which a message may name the row, counted from 1: its line, or its place among the rows.
        must_fail: whether no dataset can make a sample of it; otherwise a dataset may also do without.
    """

    what: str
    content: bytes
    numbers: tuple[int, ...]
    must_fail: bool


def spoilt(file: RowFile) -> Iterator[Spoilt]:
    """The file with its second row (of one row, the first) made bad, in one way after the other."""
    place = min(1, len(file.rows) - 1)
    row = json.loads(file.rows[place])
    numbers = (place + 2, place + 1) if file.suffix == ".json" else (place + 1,)

    def with_row(what: str, text: str, *, must_fail: bool) -> Spoilt:
        rows = (*file.rows[:place], text, *file.rows[place + 1 :])
        return Spoilt(what, file.content(rows), numbers, must_fail)

    yield with_row("is no valid JSON", file.rows[place].replace('"', "'") + "'", must_fail=True)
    yield with_row("is a number and no object", "7", must_fail=True)
    yield with_row("has none of its keys", "{}", must_fail=True)
    for key in row if isinstance(row, dict) else ():
        others = {name: value for name, value in row.items() if name != key}
        yield with_row(f"lacks its key '{key}'", json.dumps(others), must_fail=False)
        wrong = _of_another_type(row[key])
        text = json.dumps({**row, key: wrong})
        yield with_row(f"has {json.dumps(wrong)} for its key '{key}'", text, must_fail=False)


def _of_another_type(value: Any) -> Any:
    return 7.5 if isinstance(value, str | list | dict) or value is None else "seven and a half"
