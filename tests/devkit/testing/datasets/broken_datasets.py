"""A dataset that keeps all its promises, and for each promise one that breaks it and no other."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reallm import REQUIRED, DataError, DatasetSpec, DatasetUtility, NamedArray, option
from reallm.data.rows import Row, read_rows

ROWS = [{"id": f"row-{i}", "text": text} for i, text in enumerate(["one", "two", "three", "four", "five", "six"])]


class Characters:
    """Stands for a tokenizer: a token for each character."""

    eos_token_id = 0

    def __len__(self) -> int:
        return 128

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


@dataclass
class Config:
    """Of all of them."""

    train_path: str = option(REQUIRED, "rows with a key 'text'")
    my_arg: int = option(1, "a number")


class Good(torch.utils.data.Dataset[NamedArray]):
    """Samples of `input_ids`, `loss_mask` and a `weight`."""

    def __init__(self, util: DatasetUtility, path: str, my_arg: int = 1) -> None:
        self.util, self.my_arg = util, my_arg
        self.rows = self.shard(self.read(path))

    def read(self, path: str) -> Sequence[Row]:
        return read_rows(path, required={"text": str})

    def shard(self, rows: Sequence[Row]) -> Sequence[Row]:
        return self.util.shard(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        row = self.rows[i]
        ids = torch.tensor([*self.util.tokenizer.encode(row.text("text")), self.util.tokenizer.eos_token_id])
        sample = NamedArray(input_ids=ids, loss_mask=torch.ones(len(ids), dtype=torch.bool), weight=torch.ones(1))
        lengths = [[len(ids)]]
        return sample.with_metadata(seqlens={"input_ids": lengths, "loss_mask": lengths, "weight": [[1]]}, ids=[row.id])

    def report(self) -> str:
        return f"{len(self)} samples"


@dataclass
class WithoutHelp(Config):
    """A key that `--help` cannot explain."""

    my_arg: int = 1


@dataclass
class WrongDefault(Config):
    """A default that its own check refuses."""

    my_arg: int = option(-1, "a number that must not be negative")

    def __post_init__(self) -> None:
        if self.my_arg < 0:
            raise ValueError(f"my_arg={self.my_arg} must not be negative")


@dataclass
class KeyOfNoUse(Config):
    """A key that the dataset knows nothing of."""

    other: int = option(1, "the constructor does not take it")


@dataclass
class StrangeConfig(Config):
    """A type that no command line can set."""

    my_arg: complex = option(1j, "a number")  # type: ignore[assignment]


class Dicts(Good):
    """Gives mappings, as most datasets elsewhere do."""

    def __getitem__(self, i: int) -> Any:
        return dict(super().__getitem__(i).items())


class Batches(Good):
    """Gives two samples at once."""

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i).with_metadata(seqlens=None, ids=["one", "two"])


class WithoutSeqlens(Good):
    """Leaves it open which weights are whose."""

    def __getitem__(self, i: int) -> Any:
        sample = super().__getitem__(i)
        known = {name: rows for name, rows in sample.metadata["seqlens"].items() if name != "weight"}
        return sample.with_metadata(seqlens=known)


class StrangeTokens(Good):
    """Has a token that the tokenizer does not know."""

    def __getitem__(self, i: int) -> Any:
        sample = super().__getitem__(i)
        return sample.with_fields(input_ids=sample["input_ids"] + (100 if self.rows[i].id == "row-3" else 0))


class NumericMask(Good):
    """Its mask is 0 and 1, with which indexing does something else."""

    def __getitem__(self, i: int) -> Any:
        sample = super().__getitem__(i)
        return sample.with_fields(loss_mask=sample["loss_mask"].long())


class SameIds(Good):
    """Gives two samples one name."""

    def __getitem__(self, i: int) -> Any:
        sample = super().__getitem__(i)
        return sample.with_metadata(ids=[sample.metadata["ids"][0].replace("3", "2")])


class Endless(Good):
    """Begins again at its end, so that a loop over it never stops."""

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i % len(self))


class Augmented(Good):
    """Changes a sample each time it is read."""

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i).with_fields(weight=torch.from_numpy(np.random.default_rng().random(1)).float())


class MixedDtypes(Good):
    """Has one weight in another format, which cannot be joined with the others."""

    def __getitem__(self, i: int) -> Any:
        sample = super().__getitem__(i)
        return sample.with_fields(weight=sample["weight"].double()) if self.rows[i].id == "row-3" else sample


class ShuffledByNobody(Good):
    """Takes its order from the system's entropy instead of the seed."""

    def shard(self, rows: Sequence[Row]) -> Sequence[Row]:
        rows = list(rows)
        random.SystemRandom().shuffle(rows)
        return rows[self.util.dp_rank :: self.util.dp_size]


class SubsetBySeed(Good):
    """Leaves out a row that the seed chooses."""

    def shard(self, rows: Sequence[Row]) -> Sequence[Row]:
        without = self.util.seed % len(rows)
        return self.util.shard([row for number, row in enumerate(rows) if number != without or len(rows) < 3])


class WithoutRanks(Good):
    """Gives each rank all rows."""

    def shard(self, rows: Sequence[Row]) -> Sequence[Row]:
        return DatasetUtility(self.util.seed, 0, 1, self.util.tokenizer).shard(rows)


class LosesRows(Good):
    """Cuts all shards to one length, and loses what is over."""

    def shard(self, rows: Sequence[Row]) -> Sequence[Row]:
        each = len(rows) // self.util.dp_size
        return self.util.shard(rows)[: max(each, 1)]


class OpenFile(Good):
    """Holds something that cannot be pickled."""

    def __init__(self, util: DatasetUtility, path: str, my_arg: int = 1) -> None:
        super().__init__(util, path, my_arg)
        self.describe = lambda row: row.id


class OrderOfASet(Good):
    """Takes its order from a set of texts, which every process has in another one."""

    def read(self, path: str) -> Sequence[Row]:
        by_id = {row.id: row for row in super().read(path)}
        return [by_id[name] for name in set(by_id)]


class SeedsEverything(Good):
    """Seeds a random generator that belongs to the whole run."""

    def __init__(self, util: DatasetUtility, path: str, my_arg: int = 1) -> None:
        super().__init__(util, path, my_arg)
        torch.manual_seed(util.seed)


class ChangesEnvironment(Good):
    """Sets a variable for everybody when it is read."""

    def __getitem__(self, i: int) -> Any:
        os.environ["MY_DATASET"] = str(i)
        return super().__getitem__(i)


class LongReport(Good):
    """Says more than a line."""

    def report(self) -> str:
        return f"{len(self)} samples\nof {len(self.rows)} rows"


class FirstOfNone(Good):
    """Looks at the first row before it knows that there is one."""

    def read(self, path: str) -> Sequence[Row]:
        if not Path(path).read_text(encoding="utf-8").splitlines()[0].startswith("{"):
            raise DataError(f"{path}:1: no object")
        return super().read(path)


class Deviation(Good):
    """Divides by the number of rows less one."""

    def shard(self, rows: Sequence[Row]) -> Sequence[Row]:
        self.spread = sum(len(row.text("text")) for row in rows) / (len(rows) - 1)
        return super().shard(rows)


class WithoutPlace(Good):
    """Has Python say what is wrong with a row."""

    def read(self, path: str) -> Sequence[Row]:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        if not lines:
            raise DataError(f"{path}: no rows")
        found = [json.loads(line) for line in lines]
        return [Row(row["id"], path, {"text": row["text"]}) for row in found]


class NamesNoRow(Good):
    """Says which file, but not which row is wrong."""

    def read(self, path: str) -> Sequence[Row]:
        try:
            return super().read(path)
        except DataError as error:
            raise DataError(f"{Path(path).name}: {'has no rows' if 'no rows' in str(error) else 'bad row'}") from error


class SilentlyWithout(Good):
    """Leaves out rows that it cannot read, and says nothing."""

    def read(self, path: str) -> Sequence[Row]:
        rows = []
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        if not lines:
            raise DataError(f"{path}: no rows")
        for line in lines:
            try:
                value = json.loads(line)
                rows.append(Row(value["id"], path, {"text": value["text"] + ""}))
            except (ValueError, KeyError, TypeError):
                continue
        return rows


def spec(dataset: type = Good, config: Any = Config, about: str = "for tests") -> DatasetSpec:
    return DatasetSpec(dataset, config, about)


BROKEN: tuple[tuple[str, DatasetSpec], ...] = (
    ("description", spec(about="")),
    ("description", spec(about="two\nlines")),
    ("light-import", spec(config="tests.devkit.testing.datasets.broken_datasets:Config")),
    ("configuration", spec(config=WithoutHelp)),
    ("configuration", spec(config=WrongDefault)),
    ("configuration", spec(config=StrangeConfig)),
    ("construction", spec(config=KeyOfNoUse)),
    ("sample", spec(Dicts)),
    ("sample", spec(Batches)),
    ("keys", replace(spec(), keys=("input_ids", "loss_mask"))),
    ("seqlens", spec(WithoutSeqlens)),
    ("tokens", spec(StrangeTokens)),
    ("tokens", spec(NumericMask)),
    ("ids", spec(SameIds)),
    ("indices", spec(Endless)),
    ("same-twice", spec(Augmented)),
    ("packing", spec(MixedDtypes)),
    ("seed", spec(ShuffledByNobody)),
    ("seed", spec(SubsetBySeed)),
    ("ranks", spec(WithoutRanks)),
    ("ranks", spec(LosesRows)),
    ("pickling", spec(OpenFile)),
    ("another-process", spec(OrderOfASet)),
    ("side-effects", spec(SeedsEverything)),
    ("side-effects", spec(ChangesEnvironment)),
    ("report", spec(LongReport)),
    ("empty-file", spec(FirstOfNone)),
    ("single-row", spec(Deviation)),
    ("bad-row", spec(WithoutPlace)),
    ("bad-row", spec(NamesNoRow)),
    ("bad-row", spec(SilentlyWithout)),
)
"""The only check that fails, and the dataset."""
