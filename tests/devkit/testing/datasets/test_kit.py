"""Each check of the kit for datasets finds what it is for, and finds no fault with what is right."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm import NamedArray, option
from reallm.data.rows import Row
from reallm.errors import ConfigError, UnknownNameError
from reallm.specs import DatasetSpec
from reallm_devkit import DATASET_CHECKS, CheckFailed, DatasetKit, Report, check, check_dataset
from reallm_devkit.testing.datasets.subject import DatasetSubject
from tests.devkit.testing.datasets.broken_datasets import BROKEN, ROWS, Characters, Config, Good, WrongDefault, spec
from tests.helpers.tokenizers import tiny_tokenizer

SLOW = {"another-process": "it takes seconds, and this dataset is the same in every process"}


def report(dataset: DatasetSpec, **inputs: Any) -> Report:
    return check_dataset(dataset, **{"rows": ROWS, "tokenizer": Characters(), "skip": SLOW, **inputs})


def by_name(found: Report) -> dict[str, tuple[str, str]]:
    return {result.check: (result.status, result.detail) for result in found.results}


class TestGood(DatasetKit):
    dataset = DatasetSpec(
        "tests.devkit.testing.datasets.broken_datasets:Good",
        "tests.devkit.testing.offering_plugin_config:WordsConfig",
        "keeps all promises",
    )
    rows = ROWS
    tokenizer = Characters()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "dataset"),
    BROKEN,
    ids=[f"{name}-{getattr(dataset.dataset, '__name__', '')}-{n}" for n, (name, dataset) in enumerate(BROKEN)],
)
def test_what_is_broken_is_found_by_one_check_and_no_other(name: str, dataset: DatasetSpec) -> None:
    config = {"my_arg": 0} if dataset.config is WrongDefault else {}
    found = report(dataset, config=config, skip={} if name == "another-process" else SLOW)
    assert [result.check for result in found.failed] == [name], str(found)
    failure = found.failed[0].failure
    assert failure is not None
    assert failure.expected
    assert failure.seen
    assert "DatasetSpec" in failure.look_at or "broken_datasets" in failure.look_at


def test_there_is_something_broken_for_each_check() -> None:
    assert {name for name, _ in BROKEN} == {check.name for check in DATASET_CHECKS}


def test_a_failure_says_which_line_of_the_class_to_look_at() -> None:
    dataset = next(dataset for name, dataset in BROKEN if name == "ids")
    (failed,) = report(dataset).failed
    assert failed.failure is not None
    assert failed.failure.seen == "'row-2' for samples 2 and 5"
    line = dataset.dataset_class().__getitem__.__code__.co_firstlineno
    assert failed.failure.look_at.endswith(f"broken_datasets.py:{line} (SameIds.__getitem__)")


class WithoutIds(Good):
    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i).with_metadata(ids=None)


def test_a_class_that_cannot_be_imported_fails_as_a_check_does() -> None:
    (failed,) = report(DatasetSpec("tests.devkit.testing.datasets.broken_datasets:Nothing", Config, "for tests")).failed
    assert failed.check == "construction"
    assert failed.detail.startswith("cannot import 'tests.devkit.testing.datasets.broken_datasets:Nothing'")
    assert failed.failure is not None
    assert failed.failure.look_at == "'tests.devkit.testing.datasets.broken_datasets:Nothing'"


def test_samples_without_ids_are_told_apart_by_what_is_in_them() -> None:
    found = by_name(report(spec(WithoutIds)))
    assert found["ids"] == ("skipped", "samples have no ids; with_metadata(ids=[...]) has errors name the row")
    assert found["ranks"] == ("passed", "6 samples on 1 to 4 ranks")
    assert {status for status, _ in found.values()} == {"passed", "skipped"}


class LosesSamplesWithoutIds(WithoutIds):
    def shard(self, rows: Any) -> Any:
        return super().shard(rows)[: 6 // self.util.dp_size - (self.util.dp_size > 2)]


def test_samples_without_ids_that_are_lost_are_found_too() -> None:
    (failed,) = report(spec(LosesSamplesWithoutIds)).failed
    assert failed.check == "ranks"
    assert "on no rank, such as" in failed.detail
    assert "(no id)" in failed.detail


class Numbers:
    """Reads no file and no tokenizer, has nothing but what a map-style dataset must have."""

    def __init__(self, util: Any, my_arg: int = 5) -> None:
        self.numbers = util.shard(range(my_arg))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> NamedArray:
        return NamedArray(number=torch.tensor([self.numbers[i]])).with_metadata(seqlens={"number": [[1]]})


@dataclass
class NumbersConfig:
    my_arg: int = option(5, "how many")


def test_a_dataset_without_files_is_checked_as_far_as_that_goes() -> None:
    found = by_name(report(spec(Numbers, NumbersConfig), rows=()))
    skipped = {name: detail for name, (status, detail) in found.items() if status == "skipped"}
    assert {status for status, _ in found.values()} == {"passed", "skipped"}
    assert skipped["bad-row"] == skipped["empty-file"] == skipped["single-row"]
    assert skipped["bad-row"].startswith("give a file with rows")
    assert skipped["tokens"] == "no field is named `..._ids`, as those with token ids are"
    assert "report()" in skipped["report"]


class Lines(Good):
    """The lines of a text file."""

    def read(self, path: str) -> Any:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [Row(f"{path}:{n}", path, {"text": line}) for n, line in enumerate(lines, 1) if line.strip()]


def test_texts_are_the_lines_of_a_file() -> None:
    found = by_name(report(spec(Lines), rows=["one line", "another", "", "and a third"]))
    assert found["construction"] == ("passed", "Lines, 3 samples")
    assert found["empty-file"] == ("failed", "0 rows cannot be shared by 1 data-parallel rank")
    assert found["bad-row"] == ("skipped", "the kit can spoil rows of .jsonl and .json, not of .txt")


def test_a_path_of_the_authors_own_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "one"},\n{"text": "two"}]', encoding="utf-8")
    found = report(spec(), rows=(), config={"train_path": path})
    assert found.passed, str(found)
    assert by_name(found)["ranks"] == ("passed", "2 samples on 1 to 2 ranks")


def test_the_tokenizer_is_given_or_has_a_token_for_each_byte_or_is_that_of_a_folder(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    sizes = [
        by_name(report(spec(), tokenizer=tokenizer))["tokens"][1].rpartition("of ")[2]
        for tokenizer in (Characters(), None, tmp_path)
    ]
    assert sizes == ["128 tokens", "257 tokens", f"{len(tiny_tokenizer())} tokens"]


@check()
def short_samples(subject: DatasetSubject) -> str:
    """samples are short"""
    longest = max(len(sample["input_ids"]) for sample in subject.items)
    if longest > 5:
        raise CheckFailed("at most 5 tokens", f"{longest}")
    return f"{longest} at the most"


class ShortKit(DatasetKit):
    checks = (*DATASET_CHECKS, short_samples)


def test_an_author_adds_checks_of_his_own() -> None:
    found = ShortKit.of(dataset=spec(), rows=ROWS, tokenizer=Characters(), skip=SLOW).run()
    assert [result.check for result in found.failed] == ["short-samples"]
    assert hasattr(ShortKit, "test_short_samples")
    assert not hasattr(DatasetKit, "test_short_samples")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"config": {"my_ar": 3}}, "config has 'my_ar', which is not a key of dataset 'Good'; did you mean 'my_arg'?"),
        ({"rows": [{"text": "one"}, "two"]}, "rows are either all objects or all texts"),
        ({"rows": ()}, "dataset.train_path is required: rows with a key 'text'"),
        ({"tokenizer": "nowhere"}, "tokenizer=nowhere: nowhere does not exist"),
        ({"skip": {"rank": "..."}}, "skip has 'rank', which is not a check; did you mean 'ranks'?"),
    ],
)
def test_a_wrong_input_is_one_line(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        report(spec(), **inputs)
    assert str(caught.value).startswith(message)


def test_rows_need_a_key_to_be_read_by() -> None:
    with pytest.raises(ConfigError, match="'Numbers' has no key train_path or path to read them by"):
        report(spec(Numbers, NumbersConfig))


def test_a_dataset_that_is_not_installed() -> None:
    with pytest.raises(UnknownNameError, match="no installed plugin offers the dataset 'nowhere'"):
        check_dataset("nowhere")


def test_a_class_that_says_nothing_of_the_dataset() -> None:
    with pytest.raises(ConfigError, match="say which dataset is to be checked: dataset = 'my-dataset'"):
        DatasetKit().run()


class Imports(Good):
    """Draws a random number, once in a process, as a library may when it is imported."""

    is_imported = False

    def __init__(self, util: Any, path: str, my_arg: int = 1) -> None:
        super().__init__(util, path, my_arg)
        if not Imports.is_imported:
            Imports.is_imported = True
            random.random()


def test_a_number_that_a_library_draws_when_it_is_imported_is_no_side_effect() -> None:
    assert by_name(report(spec(Imports)))["side-effects"][0] == "passed"
    assert Imports.is_imported
