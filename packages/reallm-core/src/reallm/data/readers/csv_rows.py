"""Reads rows of tables in text form, `.csv` and `.tsv`. Every value is text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from reallm.data.readers.record import Origin, Records
from reallm.data.readers.text_lines import MAX_ROW, text_lines
from reallm.errors import DataError, quoted


def read_csv(path: Path, origin: Origin) -> Records:
    """Rows of a table with a header; columns end at commas, or at semicolons or tabs if the header has no comma."""
    yield from _table(path, origin, ",;\t")


def read_tsv(path: Path, origin: Origin) -> Records:
    """Rows of a table with a header; columns end at tabs."""
    yield from _table(path, origin, "\t")


def _table(path: Path, origin: Origin, delimiters: str) -> Records:
    csv.field_size_limit(MAX_ROW)  # of the whole process; its default refuses texts of 128 KiB
    with closing(text_lines(path, origin)) as lines:
        lines_read = _Lines(lines)
        first = next(lines_read, None)
        if first is None:
            return
        delimiter = next((one for one in delimiters if one in first), delimiters[0])
        lines_read.put_back(first)
        yield from _rows(csv.reader(lines_read, delimiter=delimiter, strict=True), lines_read, origin)


def _rows(reader: Iterator[list[str]], lines: _Lines, origin: Origin) -> Records:
    """The rows below the header; `lines` knows on which line a row ends, and so where the next one begins."""
    header: list[str] | None = None
    while True:
        lines.begin_row()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{origin.place}:{lines.first}: invalid quotes ({error}): a value with quotes in it is put in quotes, "
                'and its own are doubled: "like ""this"""'
            ) from error
        if not values:
            continue  # a blank line
        if header is None:
            header = [name.strip() for name in values]
            _check_header(header, origin, lines.first)
        elif len(values) != len(header):
            problem = f"number of values: found {len(values)}, wanted {len(header)}: {quoted(header, 8)}"
            yield origin.wrong_line(DataError(f"{origin.place}:{lines.first}: {problem}"))
        else:
            yield origin.at_line(lines.first, dict(zip(header, values, strict=True)))


def _check_header(header: list[str], origin: Origin, line: int) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{origin.place}:{line}: two columns are named '{twice}'; names of columns must be unique")


class _Lines(Iterator[str]):
    """Lines for `csv.reader`, with the number of the line on which the current row begins."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._kept: str | None = None
        self._last = 0
        self.first = 1

    def __next__(self) -> str:
        if self._kept is not None:
            text, self._kept = self._kept, None
            return text
        self._last, text = next(self._lines)
        return text

    def put_back(self, text: str) -> None:
        """Give the line that was read last once more."""
        self._kept = text

    def begin_row(self) -> None:
        """Count the next line as the first one of a row."""
        self.first = self._last + 1 if self._kept is None else self._last
