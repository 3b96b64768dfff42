"""Where the rows of a dataset come from, as its configuration gives it, and what the dataset gets of that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.dataset import split_args
from reallm.config.load import describe, load
from reallm.data.row_sources import RowSource
from reallm.errors import ConfigError
from reallm.options import REQUIRED, option
from reallm.specs import DatasetSpec
from tests.helpers import fake_plugins


@dataclasses.dataclass
class TablesConfig:
    """A configuration with sources of rows in all their forms."""

    train_path: str | list[str] = option(REQUIRED, "rows to train on")
    valid_path: str | list[str] | None = option(None, "rows to evaluate on")
    format: str | None = option(None, "form of the rows")
    columns: dict[str, str] = option({}, "names of columns")
    size: int = option(3, "something else")


@dataclasses.dataclass(frozen=True)
class FrozenConfig:
    """A frozen configuration with one path."""

    path: str | list[str] = option(REQUIRED, "rows")


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cls in (("tables", TablesConfig), ("frozen", FrozenConfig)):
        monkeypatch.setitem(fake_plugins.OFFERS["dataset"], name, DatasetSpec("nowhere:Rows", cls))
    fake_plugins.install(monkeypatch)


def built(*arguments: str, files: list[Path] | None = None, name: str = "tables") -> Any:
    arguments = ("model.path=m", f"dataset.name={name}", *arguments)
    return load(SFTConfig, files or [], arguments).build().dataset


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.jsonl", "a.jsonl"),
        ("007", "007"),
        ("data/*.jsonl", "data/*.jsonl"),
        ("*.jsonl", "*.jsonl"),
        ("hub:org/name:train[:10%]", "hub:org/name:train[:10%]"),
        ("rows.py:additions", "rows.py:additions"),
        ("[a.jsonl, b.csv]", ["a.jsonl", "b.csv"]),
        ("['hub:org/name:train[:10]',b]", ["hub:org/name:train[:10]", "b"]),
    ],
)
def test_a_path_is_text_as_it_is_written_or_a_list(text: str, value: Any) -> None:
    assert built(f"dataset.train_path={text}").train_path == value
    assert built("dataset.train_path=a", f"dataset.valid_path={text}").valid_path == value
    assert built(f"dataset.path={text}", name="frozen").path == value


def test_lists_and_columns_in_files(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "dataset:\n  train_path:\n    - a/*.jsonl\n    - 7.csv\n  valid_path: 008\n  columns: {prompt: q}\n"
    )
    config = built("dataset.columns.answer=007", files=[path])
    assert (config.train_path, config.valid_path) == (["a/*.jsonl", "7.csv"], "008")
    assert config.columns == {"prompt": "q", "answer": "007"}


def test_a_configuration_is_written_and_read_again() -> None:
    arguments = ["model.path=m", "dataset.name=tables", "dataset.train_path=[a,b]", "dataset.columns.prompt=q"]
    config = load(SFTConfig, [], arguments)
    tree = yaml.safe_load(config.to_yaml())
    assert tree["dataset"]["train_path"] == ["a", "b"]
    assert tree["dataset"]["columns"] == {"prompt": "q"}
    assert describe(config.build()).tree() == tree


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("train_path=[a, 7]", "dataset.train_path=[a, 7]: must be text or a list of texts"),
        ("train_path=[[a]]", "dataset.train_path=[[a]]: must be text or a list of texts"),
        ("train_path=null", "dataset.train_path must not be null; it must be text or a list"),
        ("columns=q", "dataset.columns=q: must be a mapping, such as {a: 1}"),
        ("columns.prompt=null", "dataset.columns.prompt must not be null; it must be text"),
    ],
)
def test_values_of_other_types(argument: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built("dataset.train_path=a", f"dataset.{argument}")
    assert str(caught.value) == problem


def test_a_mapping_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("dataset:\n  train_path:\n    a: 1\n")
    with pytest.raises(ConfigError, match=r"run.yaml:3: .*dataset.train_path"):
        built(files=[path])


def test_the_dataset_gets_a_row_source_if_its_configuration_has_format_and_columns() -> None:
    config = TablesConfig(train_path=["a", "b"], valid_path="v", format="text", columns={"text": "body"})
    assert split_args(config) == {
        "train": {"path": RowSource(["a", "b"], "text", {"text": "body"}), "size": 3},
        "valid": {"path": RowSource("v", "text", {"text": "body"}), "size": 3},
    }


def test_other_datasets_get_the_path_as_it_is_written() -> None:
    assert split_args(FrozenConfig(path="a")) == {"train": {"path": "a"}}
    assert split_args(fake_plugins.RowsConfig(train_path="a"))["train"]["path"] == "a"
