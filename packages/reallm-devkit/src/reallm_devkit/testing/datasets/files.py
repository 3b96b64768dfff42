"""Row files, and variants of them that are empty, have one row or a bad row. Pure functions on bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT_SUFFIXES = frozenset({".txt", ".text", ".csv", ".tsv"})
JSON_SUFFIXES = frozenset({".json", ".jsonl"})
HEADER_SUFFIXES = frozenset({".csv", ".tsv"})
"""Suffixes of formats whose first line is a header."""


@dataclass(frozen=True)
class RowFile:
    """The rows of a file in a format that the kit can split into rows: lines of text, or JSON objects.

    Attributes:
        suffix: the suffix of the file's name, which tells the format.
        header: the line before the first row, if the format has one.
        rows: the rows as text: lines, or JSON objects.
    """

    suffix: str
    header: tuple[str, ...]
    rows: tuple[str, ...]

    def content(self, rows: tuple[str, ...]) -> bytes:
        """The content of the file with these rows."""
        if self.suffix == ".json":
            return ("[\n" + ",\n".join(rows) + "\n]\n").encode()
        return "".join(f"{line}\n" for line in (*self.header, *rows)).encode()

    @property
    def empty(self) -> bytes:
        """The content without rows: no bytes for JSON lines and plain text."""
        return self.content(())

    @property
    def single(self) -> bytes:
        """The content with only the first row."""
        return self.content(self.rows[:1])


def row_file(path: Path) -> RowFile | None:
    """Split a file into rows; None if its suffix is unknown or its content does not fit the suffix."""
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES | JSON_SUFFIXES:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            rows = [json.dumps(row) for row in json.loads(text)]
        else:
            rows = [line for line in text.splitlines() if line.strip()]
    except (ValueError, TypeError):
        return None
    n_header = 1 if suffix in HEADER_SUFFIXES else 0
    return RowFile(suffix, tuple(rows[:n_header]), tuple(rows[n_header:])) if len(rows) > n_header else None


@dataclass(frozen=True)
class BadRowFile:
    """A file with one bad row.

    Attributes:
        problem: what is wrong with the row: `lacks its key 'a'`.
        content: the content of the file.
        row_numbers: numbers that a message may name the row by, counted from 1: its line, or its index among the rows.
        must_fail: whether no dataset can make a sample of the row. Otherwise a dataset may accept it.
    """

    problem: str
    content: bytes
    row_numbers: tuple[int, ...]
    must_fail: bool


def bad_row_files(file: RowFile) -> Iterator[BadRowFile]:
    """The file with its second row (the first if there is only one) replaced by bad ones, one kind after another."""
    index = min(1, len(file.rows) - 1)
    row = json.loads(file.rows[index])
    row_numbers = (index + 2, index + 1) if file.suffix == ".json" else (index + 1,)

    def with_row(problem: str, text: str, *, must_fail: bool) -> BadRowFile:
        rows = (*file.rows[:index], text, *file.rows[index + 1 :])
        return BadRowFile(problem, file.content(rows), row_numbers, must_fail)

    yield with_row("is not valid JSON", file.rows[index].replace('"', "'") + "'", must_fail=True)
    yield with_row("is a number, not an object", "7", must_fail=True)
    yield with_row("has none of its keys", "{}", must_fail=True)
    for key in row if isinstance(row, dict) else ():
        others = {name: value for name, value in row.items() if name != key}
        yield with_row(f"lacks its key '{key}'", json.dumps(others), must_fail=False)
        wrong = _wrong_type_value(row[key])
        text = json.dumps({**row, key: wrong})
        yield with_row(f"has {json.dumps(wrong)} for its key '{key}'", text, must_fail=False)


def _wrong_type_value(value: Any) -> Any:
    return 7.5 if isinstance(value, str | list | dict) or value is None else "seven and a half"
