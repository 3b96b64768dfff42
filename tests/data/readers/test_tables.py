"""Rows of Arrow tables: what is null in them, and the files and folders that the `datasets` library writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reallm.data.readers.tables import without_nulls
from reallm.data.rows import read_rows
from reallm.errors import DataError

pyarrow = pytest.importorskip("pyarrow", reason="install pyarrow (reallm-core[parquet]) to test reading tables")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS: list[dict[str, Any]] = [
    {"calls": [{"name": "f", "arguments": {"x": 1}}], "note": "a"},
    {"calls": [{"name": "g", "arguments": {"y": {"z": [{"a": 1}, {"b": None}]}}}], "note": None},
]


def write_stream(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return path


def write_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def saved(folder: Path, rows: list[dict[str, Any]], **state: Any) -> Path:
    """A folder as `Dataset.save_to_disk` writes it."""
    folder.mkdir()
    names = [write_stream(folder / f"data-{i:05}-of-00002.arrow", [row]).name for i, row in enumerate(rows)]
    content = {"_data_files": [{"filename": name} for name in names], "_split": "train", **state}
    (folder / "state.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("write", "name"), [(write_parquet, "a.parquet"), (write_stream, "a.arrow"), (write_file, "b.arrow")]
)
def test_nulls_that_a_table_fills_in_are_dropped_within_values(tmp_path: Path, write: Any, name: str) -> None:
    rows = read_rows(write(tmp_path / name, ROWS))
    assert [row.values["calls"] for row in rows] == [
        [{"name": "f", "arguments": {"x": 1}}],
        [{"name": "g", "arguments": {"y": {"z": [{"a": 1}, {}]}}}],
    ]
    assert ["note" in row for row in rows] == [True, False]
    assert [row.id for row in rows] == [f"{name}:1", f"{name}:2"]


def test_values_that_a_table_keeps_as_json_text_are_parsed(tmp_path: Path) -> None:
    values = [{"x": 1, "z": None}, [{"y": "[1]"}]]
    texts = pyarrow.array([text for value in values for text in (json.dumps(value), None)])
    texts = pyarrow.ListArray.from_arrays([0, 2, 4], pyarrow.ExtensionArray.from_storage(pyarrow.json_(), texts))
    parquet.write_table(pyarrow.table({"calls": texts, "text": ["{}", "[]"]}), tmp_path / "a.parquet")
    rows = [row.values for row in read_rows(tmp_path / "a.parquet")]
    assert rows == [{"calls": [values[0], None], "text": "{}"}, {"calls": [values[1], None], "text": "[]"}]


def test_values_that_python_does_not_have_are_one_line(tmp_path: Path) -> None:
    days = pyarrow.array([2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())  # of the year 5,881,580
    parquet.write_table(pyarrow.table({"prompt": ["a"], "day": days}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet cannot be read as a parquet file \(.*\)$"):
        read_rows(tmp_path / "a.parquet")


def test_nulls_of_a_json_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[1]))
    assert read_rows(path)[0].values == ROWS[1]


def test_nulls_of_objects_are_dropped_at_any_depth_and_those_of_lists_stay() -> None:
    assert without_nulls({"x": 1, "y": None}) == {"x": 1}
    assert without_nulls([None, {"a": [{"b": None, "c": [None]}]}, "n"]) == [None, {"a": [{"c": [None]}]}, "n"]


def test_a_folder_that_was_saved_by_datasets(tmp_path: Path) -> None:
    rows = read_rows(saved(tmp_path / "train", [{"prompt": "a"}, {"prompt": "b"}]))
    assert [row.values for row in rows] == [{"prompt": "a"}, {"prompt": "b"}]
    assert [row.id for row in rows] == ["data-00000-of-00002.arrow:1", "data-00001-of-00002.arrow:1"]


def test_a_folder_of_several_splits_names_them(tmp_path: Path) -> None:
    saved(tmp_path / "train", [{"prompt": "a"}])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds the splits 'train', 'test' of a dataset; choose one: {tmp_path / 'train'}"
    )


def test_a_folder_cannot_name_files_outside_of_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "train", [{"prompt": "a"}], _data_files=[{"filename": "../secret.arrow"}])
    with pytest.raises(DataError, match=r"state.json: names a file outside the folder"):
        read_rows(folder)


@pytest.mark.parametrize("content", [b"", b"no table", b"ARROW1 or not"])
def test_a_file_that_is_no_arrow_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.arrow(: has no rows| cannot be read as an Arrow file)"):
        read_rows(path)
