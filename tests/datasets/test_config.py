"""The configurations: what they offer, what they refuse, and that they fit the datasets and cost no import."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.evaluation import load_evaluation
from reallm.config.load import load
from reallm.errors import ConfigError
from reallm.options import REQUIRED
from reallm.plugins import registry
from tests.helpers.imports import imported_by

NAMES = ("prompt", "prompt_answer", "rw_pair", "unpaired_preference")
ROUTED = {"train_path", "valid_path", "format", "columns", "train_bs_n_seqs", "valid_bs_n_seqs", "chat_template"}
ROUTED |= {"valid_fraction", "mix"}


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_explained_and_has_the_default_of_the_dataset(name: str) -> None:
    spec = registry.get("dataset", name)
    parameters = inspect.signature(spec.dataset_class()).parameters
    fields = {field.name: field for field in dataclasses.fields(spec.config_class())}
    assert all(field.metadata["help"] for field in fields.values())
    assert set(fields) - ROUTED | {"path"} == set(parameters) - {"util"}
    for key in set(fields) - ROUTED - {"path"}:
        assert parameters[key].default == fields[key].default


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_documented_with_its_default(name: str) -> None:
    config_class = registry.get("dataset", name).config_class()
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    table = page.partition(f"| Field of `{config_class.__name__}` |")[2].partition("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    written = {REQUIRED: "required", None: "null", False: "false"}
    expected = [
        [f.name, "{}" if f.default is dataclasses.MISSING else str(written.get(f.default, f.default))]
        for f in dataclasses.fields(config_class)
    ]
    assert rows == expected


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_looked_at_and_not_read(name: str, tmp_path: Path) -> None:
    config_class: Any = registry.get("dataset", name).config_class()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no JSON")
    config_class(train_path=str(bad)).check()
    with pytest.raises(ConfigError, match=r"^train_path: .*worse.jsonl: no such file"):
        config_class(train_path=str(tmp_path / "worse.jsonl")).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^valid_path: .*: a folder without data files"):
        config_class(train_path=str(bad), valid_path=str(tmp_path / "empty")).check()


@pytest.mark.parametrize("name", NAMES)
def test_the_form_of_the_first_rows_is_looked_at(name: str, tmp_path: Path) -> None:
    config_class: Any = registry.get("dataset", name).config_class()
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a", "n": 1}\n' * 2)
    with pytest.raises(ConfigError) as caught:
        config_class(train_path=str(path)).check()
    assert str(caught.value).startswith(
        f"train_path: {path}:1: cannot recognise the format of rows with the keys 'question', 'n'; "
    )
    config_class(train_path=str(path), columns={"prompt": "question"}).check()
    config_class(train_path=str(path), format="text").check()
    with pytest.raises(ConfigError, match=r"^columns.promt=question: no format of rows has the key 'promt'"):
        config_class(train_path=str(path), columns={"promt": "question"}).check()
    with pytest.raises(ConfigError, match=r"^format=txt is not one of .*; did you mean 'text'"):
        config_class(train_path=str(path), format="txt").check()


def test_the_plugin_and_the_configurations_import_nothing_heavy() -> None:
    program = "import reallm_datasets.plugin, reallm_datasets.config"
    assert imported_by(program, "torch", "transformers", "numpy", "rich", "pyarrow") == []


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_takes_the_short_name_of_the_rows(name: str) -> None:
    given = [f"dataset.name={name}", "model.path=x", "dataset.path=a.jsonl"]
    assert load_evaluation(SFTConfig, [], given).dataset.train_path == "a.jsonl"


def test_a_mixture_without_names_is_told_to_name_its_sources() -> None:
    with pytest.raises(ConfigError) as caught:
        load(SFTConfig, (), ["dataset.mix=a.jsonl"])
    assert str(caught.value) == (
        "dataset.mix=a.jsonl: must be a mapping; name each source: dataset.mix.NAME.path=a.jsonl"
    )
