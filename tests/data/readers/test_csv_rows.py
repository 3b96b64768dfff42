"""Rows of tables in text form."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from reallm.data.rows import Row, read_rows
from reallm.errors import DataError

ROWS = [
    {"prompt": 'say "hi"', "answer": "hi,\n\nyou"},
    {"prompt": "", "answer": "\u2028 é;\t"},
    {"prompt": "x" * 200_000, "answer": "'"},
]


def table(rows: list[dict[str, str]], delimiter: str = ",", end: str = "\n") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(path: Path, text: str | bytes) -> list[Row]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_rows(path)


def message(path: Path, text: str) -> str:
    with pytest.raises(DataError) as caught:
        read(path, text)
    return str(caught.value).removeprefix(f"{path}:")


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_values_with_quotes_delimiters_and_line_breaks(tmp_path: Path, name: str, delimiter: str, end: str) -> None:
    rows = read(tmp_path / name, "\ufeff" + table(ROWS, delimiter, end))
    assert [dict(row.values) for row in rows] == ROWS
    assert [row.id for row in rows] == [f"{name}:2", f"{name}:5", f"{name}:6"]


def test_names_of_columns_have_no_spaces_around_them(tmp_path: Path) -> None:
    assert dict(read(tmp_path / "a.csv", "prompt, answer \na, b\n")[0].values) == {"prompt": "a", "answer": " b"}


def test_a_compressed_table(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv.gz", gzip.compress(table(ROWS).encode()))
    assert [dict(row.values) for row in rows] == ROWS


def test_blank_lines_are_no_rows_and_are_counted(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", "\nid,text\n\n7,a\n\n\n8,b\n")
    assert [(row.id, row.place.rpartition(":")[2]) for row in rows] == [("7", "4"), ("8", "7")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n3\n4,5,6\n", "3: number of values: found 1, wanted 2: 'a', 'b' (and 1 more row)"),
        ("a,b,a\n1,2,3\n", "1: two columns are named 'a'; names of columns must be unique"),
        ('a,b\n1,2\n3,"4\n5,6\n', "3: invalid quotes (unexpected end of data)"),
        ('a,b\n1,2\n"3"x,4\n', "3: invalid quotes (',' expected after '\"')"),
    ],
)
def test_mistakes_name_the_line_on_which_the_row_begins(tmp_path: Path, text: str, problem: str) -> None:
    assert message(tmp_path / "a.csv", text).startswith(problem)


@pytest.mark.parametrize("text", ["", "\n", "a,b\n", "\ufeff"])
def test_a_table_without_rows(tmp_path: Path, text: Any) -> None:
    assert message(tmp_path / "a.csv", text) == " has no rows"


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.csv:3: found the byte 0xe9 at column 3, wanted UTF-8 text"):
        read(tmp_path / "a.csv", "a,b\n1,2\n3,é\n".encode("latin-1"))
