"""From a dataset's name and arguments to the dataset, and what each rank gets of it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.data.datasets import Dataset, DatasetUtility, make_dataset
from reallm.data.namedarray import NamedArray
from reallm.errors import ConfigError, DataError, PluginError, UnknownNameError
from reallm.plugins import registry
from reallm.plugins.finder import Plan, Plugin
from reallm.plugins.loader import Loaded, Offer
from reallm.specs import DatasetSpec


@dataclasses.dataclass
class Config:
    my_arg: int = 3


class Mine(torch.utils.data.Dataset[NamedArray]):
    def __init__(self, util: DatasetUtility, *, my_arg: int, factor: float = 1.0) -> None:
        self.util, self.values = util, torch.arange(my_arg) * factor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> NamedArray:
        return NamedArray(x=self.values[i : i + 1])


class TakesAnything(Mine):
    def __init__(self, util: DatasetUtility, **args: Any) -> None:
        super().__init__(util, my_arg=len(args))


class WithoutUtil:
    def __init__(self, my_arg: int = 0) -> None:
        pass


class Stream:
    def __init__(self, util: DatasetUtility) -> None:
        pass


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Plugin(
        "my-dist",
        "1.2",
        "my_dist.plugin",
        tuple(f"dataset.{name}" for name in ("mine", "anything", "no-util", "stream")),
    )
    classes = {"mine": Mine, "anything": TakesAnything, "no-util": WithoutUtil, "stream": Stream}
    offers = tuple(Offer("dataset", name, DatasetSpec(cls, Config), plugin) for name, cls in classes.items())
    made = registry.Registry(Plan((plugin,)), load=lambda plugin: Loaded(plugin, offers))
    monkeypatch.setattr(registry, "registry", lambda: made)


def make(name: str, **args: Any) -> Any:
    return make_dataset(Dataset(name, args), seed=7, tokenizer=None, dp_rank=1, dp_size=2)  # type: ignore[arg-type]


def test_a_dataset_is_found_by_name_and_gets_util_and_its_arguments() -> None:
    dataset = make("mine", my_arg=4, factor=0.5)
    assert isinstance(dataset, Mine)
    assert [dataset[i].x.item() for i in range(len(dataset))] == [0.0, 0.5, 1.0, 1.5]
    assert dataset.util == DatasetUtility(seed=7, dp_rank=1, dp_size=2, tokenizer=None)  # type: ignore[arg-type]


def test_a_dataset_may_take_any_arguments() -> None:
    assert len(make("anything", a=1, b=2)) == 2


@pytest.mark.parametrize(
    ("name", "args", "problem"),
    [
        ("mine", {"my_args": 3}, "has no argument 'my_args'; did you mean 'my_arg'?"),
        ("mine", {"path": "x"}, "has no argument 'path'; it has: my_arg, factor"),
        ("stream", {"path": "x"}, "has no argument 'path'; it has: none"),
        ("mine", {"factor": 2.0}, "needs the argument 'my_arg'"),
    ],
)
def test_wrong_arguments_name_the_dataset_its_distribution_and_the_argument(
    name: str, args: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(name, **args)
    assert str(caught.value) == f"dataset '{name}' of my-dist 1.2 {problem}"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no-util", "the constructor of WithoutUtil does not take 'util'"),
        ("stream", "is not a map-style dataset: Stream has no __len__ and no __getitem__"),
    ],
)
def test_a_class_that_is_no_dataset_is_the_fault_of_its_plugin(name: str, problem: str) -> None:
    with pytest.raises(PluginError, match="of my-dist 1.2") as caught:
        make(name)
    assert problem in str(caught.value)


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="mine"):
        make("mien")


@pytest.mark.parametrize(
    ("rank", "size", "said"),
    [
        (2, 2, "dp_rank=2 is not a rank of dp_size=2"),
        (-1, 2, "dp_rank=-1 must be at least 0"),
        (0, 0, "dp_size=0 must be at least 1"),
        (0, "2", "dp_size='2' must be a whole number"),
        (None, 2, "dp_rank=None must be a whole number"),
    ],
)
def test_a_rank_that_cannot_be(rank: Any, size: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DatasetUtility(1, rank, size, None)  # type: ignore[arg-type]


def util(seed: int, rank: int, size: int) -> DatasetUtility:
    return DatasetUtility(seed, rank, size, None)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 8), st.integers(0, 50))
def test_the_ranks_share_the_rows_evenly_and_leave_none_out(seed: int, size: int, more: int) -> None:
    rows = list(range(size + more))
    shards = [util(seed, rank, size).shard(rows) for rank in range(size)]
    assert sorted(row for shard in shards for row in shard) == rows
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shards == [util(seed, rank, size).shard(rows) for rank in range(size)]


def test_rows_are_shuffled_by_the_seed() -> None:
    rows = list(range(100))
    assert util(1, 0, 1).shard(rows) != rows
    assert util(1, 0, 1).shard(rows) != util(2, 0, 1).shard(rows)


def test_fewer_rows_than_ranks() -> None:
    with pytest.raises(DataError, match="2 rows cannot be shared by 3 data-parallel ranks"):
        util(1, 0, 3).shard([1, 2])


def test_a_name_and_arguments_do_without_a_dataset_object() -> None:
    dataset: Any = make_dataset("mine", my_arg=4, factor=0.5, tokenizer=None)  # type: ignore[arg-type]
    assert len(dataset) == 4
    assert dataset.util.seed == 1


@pytest.mark.parametrize(
    ("dataset", "args", "said"),
    [
        (None, {}, "dataset must be a Dataset, not None; write make_dataset("),
        (Dataset("mine", {"my_arg": 1}), {"my_arg": 2}, "'my_arg' is given twice"),
        ("mine", {"my_arg": 1, "seed": "x"}, "seed='x' must be a whole number"),
        ("mine", {"my_arg": 1, "tokenizer": "gpt2"}, "tokenizer must be a tokenizer, not a path (gpt2)"),
    ],
)
def test_a_call_that_is_wrong_is_told_how_to_write_it(dataset: Any, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        make_dataset(dataset, **{"tokenizer": None, **args})


def test_the_arguments_of_a_dataset_are_a_mapping() -> None:
    with pytest.raises(ConfigError, match="^args must be a mapping, such as {a: 1}, not a list$"):
        Dataset("mine", [1])  # type: ignore[arg-type]
