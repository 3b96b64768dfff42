"""The keys of an evaluation: those of the algorithm that do not concern training, and rows by a short name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.evaluation import (
    evaluation_class,
    evaluation_settings,
    keys_as_written,
    load_evaluation,
    load_without_rows,
)
from reallm.errors import ConfigError, DataError
from tests.helpers import fake_plugins


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_plugins.install(monkeypatch)


def built(*arguments: str) -> SFTConfig:
    config = load_evaluation(SFTConfig, [], ["model.path=m", *arguments])
    assert isinstance(config, SFTConfig)
    return config


def test_it_has_models_data_and_layout_and_nothing_about_training() -> None:
    assert [item.name for item in fields(evaluation_class(SFTConfig))] == [
        "model", "dataset", "parallel", "max_tokens_per_microbatch", "seed", "deterministic",
    ]  # fmt: skip


def test_rows_are_given_by_a_short_name_or_by_the_keys_of_training() -> None:
    short = built("dataset.path=t.jsonl", "dataset.max_seqlen=9")
    assert short == built("dataset.train_path=t.jsonl", "dataset.max_seqlen=9")
    assert (short.dataset.train_path, short.dataset.valid_path, short.dataset.max_seqlen) == ("t.jsonl", None, 9)
    valid = built("dataset.valid_path=v.jsonl").dataset
    assert (valid.train_path, valid.valid_path) == ("v.jsonl", "v.jsonl")


def test_the_file_of_a_run_gives_its_data_unless_other_rows_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: {path: m}\nepochs: 3\noptimizer: {lr: 1e-3}\n"
        "dataset: {train_path: t.jsonl, valid_path: v.jsonl, max_seqlen: 9}\n"
    )
    of_run = load_evaluation(SFTConfig, [file], []).dataset
    assert (of_run.train_path, of_run.valid_path, of_run.max_seqlen) == ("t.jsonl", "v.jsonl", 9)
    other = load_evaluation(SFTConfig, [file], ["dataset.path=o.jsonl"]).dataset
    assert (other.train_path, other.valid_path, other.max_seqlen) == ("o.jsonl", None, 9)
    assert load_without_rows(SFTConfig, [file], []).model.path == "m"
    with pytest.raises(ConfigError, match="unknown key 'epochs'"):
        load_evaluation(SFTConfig, [file], ["epochs=2"])


def test_settings_that_are_not_used_are_not_written() -> None:
    settings = evaluation_settings(built("dataset.path=t.jsonl", "parallel.tp=2"))
    assert settings.keys() == {"model", "dataset", "parallel", "max_tokens_per_microbatch", "seed", "deterministic"}
    assert settings["parallel"]["tp"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataset.path is required: the rows to evaluate"),
        (["dataset.path=t.jsonl", "optimizer.lr=1"], "unknown key 'optimizer.lr'"),
        (["dataset.path=t.jsonl", "epochs=1"], "unknown key 'epochs'"),
        (["dataset.path=t.jsonl", "dataset.valid_path=v.jsonl"], "dataset.path and dataset.valid_path both name rows"),
        (["dataset.name=my-dataset", "dataset.path=t.jsonl"], "unknown key 'dataset.path'"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(*arguments)


def test_errors_speak_of_the_key_that_was_written() -> None:
    for argument, key in (
        ("dataset.path=t.jsonl", "dataset.path"),
        ("dataset.train_path=t.jsonl", "dataset.train_path"),
    ):
        with pytest.raises(DataError, match=f"^{key}: no such file$"), keys_as_written(SFTConfig, [], [argument]):
            raise DataError("dataset.train_path: no such file")
