"""Files with rows, taken apart and written badly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reallm_devkit.testing.datasets.files import bad_row_files, row_file

OBJECTS = '{"a": "x", "b": 1}\n\n{"a": "y", "b": 2}\n{"a": "z", "b": 3}\n'


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "empty", "single"),
    [
        ("a.txt", "one\n\ntwo\n", "", "one\n"),
        ("a.csv", "x,y\n1,2\n3,4\n", "x,y\n", "x,y\n1,2\n"),
        ("a.jsonl", OBJECTS, "", '{"a": "x", "b": 1}\n'),
        ("a.json", '[{"a": 1},\n {"a": 2}]', "[\n\n]\n", '[\n{"a": 1}\n]\n'),
    ],
)
def test_a_file_without_rows_and_with_one(tmp_path: Path, name: str, text: str, empty: str, single: str) -> None:
    file = row_file(written(tmp_path, name, text))
    assert file is not None
    assert (file.empty.decode(), file.single.decode()) == (empty, single)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.parquet", "PAR1"), ("a.json", "{}{}"), ("a.json", "7"), ("a.csv", "x,y\n"), ("a.txt", ""), ("a.json", "[]")],
)
def test_what_cannot_be_taken_apart(tmp_path: Path, name: str, text: str) -> None:
    assert row_file(written(tmp_path, name, text)) is None


def test_one_row_is_made_bad_in_each_way(tmp_path: Path) -> None:
    file = row_file(written(tmp_path, "a.jsonl", OBJECTS))
    assert file is not None
    found = {one.problem: one for one in bad_row_files(file)}
    assert list(found) == [
        "is not valid JSON",
        "is a number, not an object",
        "has none of its keys",
        "lacks its key 'a'",
        "has 7.5 for its key 'a'",
        "lacks its key 'b'",
        "has \"seven and a half\" for its key 'b'",
    ]
    for one in found.values():
        first, second, third = one.content.decode().splitlines()
        assert (json.loads(first), json.loads(third)) == ({"a": "x", "b": 1}, {"a": "z", "b": 3})
        assert second != '{"a": "y", "b": 2}'
        assert one.row_numbers == (2,)
    assert [one.must_fail for one in found.values()] == [True] * 3 + [False] * 4
    assert json.loads(found["lacks its key 'a'"].content.decode().splitlines()[1]) == {"b": 2}


def test_a_row_of_a_list_is_named_by_its_line_or_its_place(tmp_path: Path) -> None:
    file = row_file(written(tmp_path, "a.json", '[{"a": 1}, {"a": 2}, {"a": 3}]'))
    assert file is not None
    bad = next(one for one in bad_row_files(file) if one.problem == "lacks its key 'a'")
    assert json.loads(bad.content) == [{"a": 1}, {}, {"a": 3}]
    assert bad.content.decode().splitlines().index("{},") + 1 == bad.row_numbers[0] == 3
    assert bad.row_numbers[1] == 2


def test_of_a_single_row_it_is_that_one(tmp_path: Path) -> None:
    file = row_file(written(tmp_path, "a.jsonl", '{"a": 1}\n'))
    assert file is not None
    assert {one.row_numbers for one in bad_row_files(file)} == {(1,)}
