"""Splits of datasets of the hub. A folder stands for one on the hub: the `datasets` library reads both alike."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from reallm.data.readers.hub import HubSplit, read_hub
from reallm.data.readers.record import Origin
from reallm.data.row_sources import RowSource
from reallm.data.rows import check_rows, read_rows
from reallm.errors import DataError

datasets = pytest.importorskip("datasets", reason="install datasets (reallm-core[hub]) to test reading the hub")

ORIGIN = Origin("hub:org/name:train", "org/name:train")


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset with two splits."""
    path = tmp_path / "name"
    path.mkdir()
    rows = [{"q": "a", "calls": [{"x": 1}]}, {"q": "b", "calls": [{"y": 2}]}]
    for split, n in (("train", 2), ("test", 1)):
        (path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:n]))
    return path


def read(split: HubSplit) -> list[Any]:
    return [(record.position, record.value) for record in read_hub(split, ORIGIN)]


def test_rows_of_a_split_without_the_nulls_that_its_table_fills_in(folder: Path) -> None:
    rows = [
        ("org/name:train:1", {"q": "a", "calls": [{"x": 1}]}),
        ("org/name:train:2", {"q": "b", "calls": [{"y": 2}]}),
    ]
    assert read(HubSplit(str(folder), None, None, "train")) == rows
    assert read(HubSplit(str(folder), None, None, "train[:1]")) == rows[:1]


def test_a_split_that_does_not_exist_and_one_that_is_not_chosen(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(HubSplit(str(folder), None, None, "trian"))
    assert str(caught.value) == (
        "hub:org/name:train: no split 'trian'; did you mean 'train'?; its splits are 'train', 'test'"
    )
    with pytest.raises(DataError, match=r"choose one of its splits, 'train', 'test'"):
        read(HubSplit(str(folder), None, None, None))
    (folder / "test.jsonl").unlink()
    assert len(read(HubSplit(str(folder), None, None, None))) == 2


def test_an_unknown_config_lists_those_that_exist(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^hub:org/name:train: .*'?no_such'?.* not found.*default") as caught:
        read(HubSplit(str(folder), None, "no_such", "train"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_neither_in_the_cache_nor_reachable(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError) as caught:
        read_rows("hub:no-such-org/no-such-name:train")
    assert str(caught.value).startswith("hub:no-such-org/no-such-name:train: ")
    assert "no-such-org/no-such-name" in str(caught.value).removeprefix("hub:no-such-org/no-such-name:train: ")
    assert str(caught.value).endswith("; without a network, only what is in the cache of datasets can be read")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub:org/name:train", ("org/name", None, None, "train")),
        ("hub:name", ("name", None, None, None)),
        ("hub:org/name:main:train", ("org/name", None, "main", "train")),
        ("hub:org/name@v1.0:train[:10%]", ("org/name", "v1.0", None, "train[:10%]")),
        (
            "hub:org/na.me_2@refs/convert/parquet:a-b:test[5:]",
            ("org/na.me_2", "refs/convert/parquet", "a-b", "test[5:]"),
        ),
    ],
)
def test_names_of_splits(text: str, parts: tuple[Any, ...]) -> None:
    assert HubSplit.of(text) == parts


@pytest.mark.parametrize(
    "text", ["hub:", "hub:org/name:", "hub:a/b/c:train", "hub:org/name:a:b:c", "hub:org/name:train["]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match=r"wanted hub:org/name:split, or hub:org/name:config:split"):
        check_rows(RowSource(text))


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as caught:
        check_rows(RowSource("hub:org/name:train"))
    assert str(caught.value) == (
        "hub:org/name:train: reading datasets of the hub needs datasets: pip install 'reallm-core[hub]'"
    )


def test_nulls_are_dropped_from_a_dataset_that_is_given_itself() -> None:
    rows = datasets.Dataset.from_list([{"a": {"x": 1}}, {"a": {"y": 2}}])
    expected = [{"a": {"x": 1}}, {"a": {"y": 2}}]
    assert [row.values for row in read_rows(rows)] == expected
    assert [row.values for row in read_rows(lambda: rows)] == expected


def test_a_folder_that_the_library_saved(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list([{"a": 1}, {"a": 2}, {"a": 3}])
    split.select([2, 0]).save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": split}).save_to_disk(tmp_path / "several")
    assert [row.values for row in read_rows(tmp_path / "one")] == [{"a": 3}, {"a": 1}]
    assert [row.values for row in read_rows(tmp_path / "several" / "train")] == [{"a": 1}, {"a": 2}, {"a": 3}]
    with pytest.raises(DataError, match=r"several: holds the splits 'train' of a dataset"):
        read_rows(tmp_path / "several")
