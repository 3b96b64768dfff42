"""Rows of JSON in files that are not what their name says: read if it is clear what is meant, else named."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reallm.data.readers import json_rows, text_lines
from reallm.data.rows import read_rows
from reallm.errors import DataError

ROWS = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "{"}]


def read(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    path.write_text(text, encoding="utf-8")
    return [(row.id.removeprefix(f"{path.name}:"), dict(row.values)) for row in read_rows(path)]


def test_pretty_printed_objects_in_jsonl(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    assert read(tmp_path / "a.jsonl", "\n" + text) == [("2", ROWS[0]), ("6", ROWS[1])]


def test_an_object_on_several_lines_in_jsonl(tmp_path: Path) -> None:
    text = '{"prompt": "a",\n "answer": "b"}\n{"prompt": "c",\n "answer": "{"}\n'
    assert read(tmp_path / "a.jsonl", text) == [("1", ROWS[0]), ("3", ROWS[1])]


def test_a_first_line_that_was_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.jsonl:1: invalid JSON: Unterminated string starting at column 17$"):
        read(tmp_path / "a.jsonl", '{"prompt": "a", "ans\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: invalid JSON: .*; the line ends within a value$"):
        read(tmp_path / "a.jsonl", '{"prompt": "a",\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: invalid JSON: .*; the line ends within a value$"):
        read(tmp_path / "a.jsonl", '{"prompt": "a",')


@pytest.mark.parametrize("indent", [None, 1])
def test_one_list_in_jsonl(tmp_path: Path, indent: int | None) -> None:
    places = ["1", "1#2"] if indent is None else ["2", "6"]
    assert read(tmp_path / "a.jsonl", json.dumps(ROWS, indent=indent)) == list(zip(places, ROWS, strict=True))


@pytest.mark.parametrize("between", ["\n", "\n\n", "\r\n"])
def test_an_object_on_each_line_of_a_json_file(tmp_path: Path, between: str) -> None:
    found = read(tmp_path / "a.json", between.join(map(json.dumps, ROWS)))
    assert [values for _, values in found] == ROWS
    assert [place for place, _ in found] == (["1", "3"] if between == "\n\n" else ["1", "2"])


def test_pretty_printed_objects_in_a_json_file(tmp_path: Path) -> None:
    text = ",\n".join(json.dumps(row, indent=2) for row in ROWS)
    assert read(tmp_path / "a.json", text) == [("1", ROWS[0]), ("5", ROWS[1])]


@pytest.mark.parametrize("name", ["data", "examples"])
def test_a_list_under_a_key_with_the_lines_of_its_elements(tmp_path: Path, name: str) -> None:
    text = json.dumps({"version": "[1]", "about": {name: []}, name: ROWS, "n": 2}, indent=1)
    found = read(tmp_path / "a.json", text)
    assert [values for _, values in found] == ROWS
    lines = text.splitlines()
    assert [lines[int(place) - 1].strip() for place, _ in found] == ["{", "{"]
    assert [lines[int(place)].strip() for place, _ in found] == ['"prompt": "a",', '"prompt": "c",']


@pytest.mark.parametrize("row", [{"prompt": "a", "answer": "b"}, {"messages": [{"role": "user", "content": "a"}]}])
def test_one_object_is_one_row(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path / "a.json", json.dumps(row, indent=2)) == [("1", row)]
    assert read(tmp_path / "a.jsonl", json.dumps(row, indent=2)) == [("1", row)]


def test_a_line_that_ends_too_early_is_named_with_how_many_more_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 2}\nnothing\n{"a"\n')
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(caught.value) == (
        f"{path}:2: invalid JSON: Expecting value at column 6; the line ends within a value (and 2 more rows)"
    )


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("a.jsonl", "<!DOCTYPE html>\n", "; this is a web page, not data: download the file itself"),
        ("a.json", "\n<html lang='en'>\n", "; this is a web page, not data: download the file itself"),
        ("a.jsonl", '{"a": 1},\n', "; leave out the trailing comma"),
        ("a.jsonl", '{"a": 1,}\n', "; leave out the trailing comma"),
        ("a.json", '[{"a": 1},\n{"a": [1,\n]}]', "; leave out the trailing comma"),
        ("a.json", '[{"a": 1},\n]', "; leave out the trailing comma"),
    ],
)
def test_what_is_often_wrong_has_a_hint(tmp_path: Path, name: str, text: str, hint: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=f"{hint}$"):
        read_rows(path)


def test_a_comma_within_text_is_no_trailing_comma(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ",}" 1}\n')
    with pytest.raises(DataError, match=r"Expecting ',' delimiter at column 12$"):
        read_rows(path)


class TestBounds:
    """A compressed file of a megabyte may hold a gigabyte."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(json_rows, "text_lines", partial(text_lines.text_lines, longest=1000))
        monkeypatch.setattr(json_rows, "MAX_UNPACKED", 2000)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
    def test_a_line_that_is_too_long_is_named(self, tmp_path: Path, name: str) -> None:
        line = json.dumps({"prompt": "a", "answer": "b" * 900})
        with pytest.raises(DataError, match=rf"{name}:2: the line is longer than"):
            write_and_read(tmp_path / name, f"{line}\n{' ' * 2000}\n{line}\n")
        assert len(write_and_read(tmp_path / name, f"{line}\n" * 50)) == 50

    def test_a_compressed_list_that_is_too_long_is_named(self, tmp_path: Path) -> None:
        text = json.dumps([{"prompt": "a", "answer": "b"}] * 100, indent=1)
        assert len(write_and_read(tmp_path / "a.jsonl", text)) == 100
        with pytest.raises(DataError, match=r"a\.jsonl\.gz:\d+: unpacks to more than"):
            write_and_read(tmp_path / "a.jsonl.gz", text)

    def test_blank_lines_without_end_are_not_collected(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.jsonl\.gz:65537: more than 65,536 blank lines"):
            write_and_read(tmp_path / "a.jsonl.gz", "\n" * 70_000)


def write_and_read(path: Path, text: str) -> list[Any]:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return read_rows(path)
