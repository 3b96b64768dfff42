"""Several files at once: lists, folders and patterns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reallm.data.rows import read_rows
from reallm.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b/2.jsonl", "b/1.jsonl", "a/1.jsonl"):
        write(tmp_path / name, {"in": name}, {"in": f"{name} too"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def ids(source: Any) -> list[str]:
    return [row.id for row in read_rows(source)]


def message(source: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(source)
    return str(caught.value)


@pytest.mark.usefixtures("folder")
def test_files_of_a_list_are_read_in_its_order_and_those_of_a_folder_or_a_pattern_by_name() -> None:
    assert ids(["b/2.jsonl", "b/1.jsonl"]) == ["2.jsonl:1", "2.jsonl:2", "1.jsonl:1", "1.jsonl:2"]
    assert ids("b") == ids("b/*.jsonl") == ["1.jsonl:1", "1.jsonl:2", "2.jsonl:1", "2.jsonl:2"]
    assert ids([Path("b/2.jsonl"), "a"]) == ["2.jsonl:1", "2.jsonl:2", "1.jsonl:1", "1.jsonl:2"]


@pytest.mark.usefixtures("folder")
def test_files_of_the_same_name_are_told_apart_by_their_folders() -> None:
    assert ids("**/1.jsonl") == ["a/1.jsonl:1", "a/1.jsonl:2", "b/1.jsonl:1", "b/1.jsonl:2"]
    assert ids("b/../**/1.jsonl") == ids("**/1.jsonl")


def test_ids_are_unique_in_each_of_several_files(folder: Path) -> None:
    write(folder / "c.jsonl", {"id": 1}, {"id": 2})
    write(folder / "d.jsonl", {"id": 1}, {"id": 2}, {"id": 2})
    assert ids("c.jsonl") == ["1", "2"]
    assert ids(["c.jsonl", "a"]) == ["c.jsonl:1", "c.jsonl:2", "1.jsonl:1", "1.jsonl:2"]
    assert message(["c.jsonl", "d.jsonl"]) == (
        "d.jsonl:3: key 'id': '2' is already the id of d.jsonl:2; ids must be unique"
    )


def test_a_pattern_without_files_and_a_folder_without_rows(folder: Path) -> None:
    assert message("b/*.json") == f"b/*.json: no file matches (looked in {folder / 'b'})"
    assert message(str(folder)) == (
        f"{folder}: a folder without data files (.jsonl, .json, .csv, .tsv, .parquet, .arrow); "
        "it has the folders 'a', 'b'"
    )
    assert message([]) == "no data file is given: the list is empty"


@pytest.mark.parametrize(
    ("names", "kinds", "pattern"),
    [
        (["train.jsonl", "dataset_infos.json"], "'.json', '.jsonl'", "*.json*"),
        (["train-0.jsonl", "test-0.jsonl"], "'test', 'train'", "train*"),
    ],
)
def test_a_folder_of_several_kinds_of_files_is_not_mixed(
    tmp_path: Path, names: list[str], kinds: str, pattern: str
) -> None:
    for name in names:
        write(tmp_path / name, {"a": 1})
    assert message(tmp_path) == (
        f"{tmp_path}: has files of several kinds, {kinds}; choose some of them: '{tmp_path / pattern}'"
    )


def test_other_files_of_a_folder_are_left_alone(folder: Path) -> None:
    (folder / "a" / "README.md").write_text("about")
    (folder / "a" / ".1.jsonl").write_text("hidden")
    assert len(ids("a")) == 2


@pytest.mark.usefixtures("folder")
def test_the_same_file_twice() -> None:
    assert message(["b", "b/1.jsonl"]) == "b/1.jsonl: given 2 times; its rows would have the same ids"


@pytest.mark.usefixtures("folder")
def test_a_file_whose_name_looks_like_a_pattern_is_a_file() -> None:
    write(Path("a[1].jsonl"), {"a": 1})
    assert ids("a[1].jsonl") == ["a[1].jsonl:1"]


@pytest.mark.usefixtures("folder")
def test_what_is_no_file_but_is_clear() -> None:
    assert message("https://host/a.jsonl") == (
        "https://host/a.jsonl is a web address, not a file; download it, and give its path"
    )
    assert message("https://huggingface.co/datasets/org/name").endswith("; write hub:org/name:train, or another split")
    assert message("org/name") == "org/name: no such file; a dataset of the hub is hub:org/name:train"


def test_rows_as_a_list(tmp_path: Path) -> None:
    rows = read_rows([{"a": 1}, {"a": None, "id": "x"}])
    assert [(row.id, row.values) for row in rows] == [("rows[0]", {"a": 1}), ("x", {"a": None, "id": "x"})]
    assert message([{"a": 1}, "b"]) == "rows[1]: found text ('b'), wanted an object such as {...}"
    assert message({"a": [1]}) == ("path: found a dict, wanted a path, a list of paths, a function or a list of rows")
