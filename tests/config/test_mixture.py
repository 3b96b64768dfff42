"""Splits and mixtures in the configuration of a dataset: what becomes of the keys, and what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from reallm.config import dataset as dataset_module
from reallm.config.dataset import check_splits, split_args, splits
from reallm.config.mixture import MixSource, mix_sources
from reallm.data.datasets import Dataset
from reallm.data.mixture import Mixture
from reallm.data.row_sources import RowSource
from reallm.data.row_split import RowSplit
from reallm.errors import ConfigError
from reallm.options import REQUIRED, option


@dataclass
class Config:
    """The configuration of a dataset with every field about rows."""

    train_path: Any = option(REQUIRED, "rows to train on")
    valid_path: Any = option(None, "rows to evaluate on")
    valid_fraction: float | None = option(None, "share to evaluate on")
    mix: dict[str, Any] = option({}, "sources")
    format: str | None = option(None, "form")
    columns: dict[str, str] = option({}, "names")
    size: int = option(3, "of anything")
    name: str = "letters"


@dataclass
class OnePath:
    """The configuration of a dataset whose rows are only for training."""

    path: Any = option(REQUIRED, "rows")
    valid_fraction: float | None = option(None, "share to evaluate on")
    mix: dict[str, Any] = option({}, "sources")
    format: str | None = option(None, "form")
    columns: dict[str, str] = option({}, "names")
    name: str = "letters"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "dataset_name", lambda config: config.name)


def test_a_fraction_splits_the_rows_of_one_file() -> None:
    config = Config(train_path="a.jsonl", valid_fraction=0.1, columns={"prompt": "q"})
    assert split_args(config) == {
        "train": {"path": RowSource("a.jsonl", None, {"prompt": "q"}, RowSplit(0.1, is_valid=False)), "size": 3},
        "valid": {"path": RowSource("a.jsonl", None, {"prompt": "q"}, RowSplit(0.1, is_valid=True)), "size": 3},
    }
    assert set(split_args(OnePath(path="a.jsonl", valid_fraction=0.1))) == {"train", "valid"}


def test_without_a_fraction_there_is_no_split() -> None:
    assert split_args(Config(train_path="a.jsonl")) == {"train": {"path": RowSource("a.jsonl"), "size": 3}}
    assert split_args(OnePath(path="a.jsonl")) == {"train": {"path": RowSource("a.jsonl")}}


MIX = {
    "math": {"path": "m.jsonl", "weight": 3},
    "chat": {"path": ["a.jsonl", "b.jsonl"], "weight": 0.5, "format": "sharegpt", "columns": {"conversations": "c"}},
}


def test_the_sources_of_a_mixture_are_datasets_with_their_own_rows() -> None:
    config = Config(train_path=None, mix=MIX, columns={"prompt": "q"}, size=5)
    chat = RowSource(["a.jsonl", "b.jsonl"], "sharegpt", {"conversations": "c"})
    expected = {
        "math": Dataset("letters", {"path": RowSource("m.jsonl", None, {"prompt": "q"}), "size": 5}),
        "chat": Dataset("letters", {"path": chat, "size": 5}),
    }
    assert splits(config) == {"train": Mixture(expected, {"math": 3, "chat": 0.5})}
    assert splits(OnePath(path=None, mix=MIX))["train"].name == "letters"


def test_a_fraction_splits_each_source_and_a_path_is_evaluated_alone() -> None:
    found = splits(Config(train_path=None, mix=MIX, valid_fraction=0.25))
    train, valid = found["train"], found["valid"]
    assert isinstance(train, Mixture)
    assert isinstance(valid, Mixture)
    assert [one.args["path"].split for one in train.sources.values()] == [RowSplit(0.25, is_valid=False)] * 2
    assert [one.args["path"].split for one in valid.sources.values()] == [RowSplit(0.25, is_valid=True)] * 2
    assert (valid.weights, valid.may_lack_sources) == ({}, True)
    by_path = splits(Config(train_path=None, mix=MIX, valid_path="v.jsonl"))
    assert by_path["valid"] == Dataset("letters", {"path": RowSource("v.jsonl"), "size": 3})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (Config(train_path="a", mix=MIX), "train_path=a: the sources of mix are the rows to train on; give one or the"),
        (Config(train_path=None), "train_path is required, or sources of a mixture (mix.NAME.path=...)"),
        (Config(train_path="a", valid_fraction=1.0), "valid_fraction=1.0 must be above 0 and below 1"),
        (Config(train_path="a", valid_fraction=0.0), "valid_fraction=0.0 must be above 0 and below 1"),
        (Config(train_path="a", valid_path="v", valid_fraction=0.1), "valid_fraction=0.1: valid_path gives the rows"),
        (OnePath(path=None), "path is required, or sources of a mixture"),
        (Config(None, mix={"a": {"pth": "x"}}), "mix.a.pth is unknown; did you mean 'path'?"),
        (Config(None, mix={"a": {"path": "x", "zzz": 1}}), "mix.a.zzz is unknown; a source has path, weight, format,"),
        (Config(None, mix={"a": {"weight": 1}}), "mix.a.path is required: the rows of the source 'a'"),
        (Config(None, mix={"a": "x"}), "mix.a='x' is not a source; give a.path=..."),
        (Config(None, mix={"a b": {"path": "x"}}), "mix.a b: the name of a source must consist of letters"),
        (Config(None, mix={"a": {"path": "x", "weight": 0}}), "mix.a.weight=0 must be a number above 0"),
        (Config(None, mix={"a": {"path": "x", "weight": "3"}}), "mix.a.weight='3' must be a number above 0"),
        (Config(None, mix={"a": {"path": "x", "weight": True}}), "mix.a.weight=True must be a number above 0"),
        (Config(None, mix={"a": {"path": "x", "format": 3}}), "mix.a.format=3 must be the name of a format"),
        (Config(None, mix={"a": {"path": "x", "columns": "q"}}), "mix.a.columns='q' must be a mapping"),
        (
            Config(None, mix={"a": {"path": "x", "weight": 1}, "b": {"path": "y"}}),
            "mix.b.weight is missing, but source 'a' has one; give all or none",
        ),
    ],
)
def test_mistakes(config: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        check_splits(config)


def test_sources_without_weights() -> None:
    assert mix_sources(Config(None, mix={"a": {"path": "x"}})) == {"a": MixSource("x")}
    assert mix_sources(object()) == {}
