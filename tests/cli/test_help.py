"""`reallm sft --help` documents every key."""

from __future__ import annotations

import dataclasses
import re

import pytest

from reallm.algorithms.sft.config import SFTConfig
from reallm.cli.help import help_text
from reallm.config.args import ModelArgs
from reallm.config.lora import LoRAArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.parallel import ParallelArgs
from reallm.config.plan import PlanArgs
from reallm.config.schema import groups
from tests.helpers import fake_plugins


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_plugins.install(monkeypatch)


def page(*arguments: str) -> str:
    text = help_text("sft", fake_plugins.OFFERS["algorithm"]["sft"], list(arguments), [])
    return re.sub("\x1b.*?m", "", text)


def joined(text: str) -> str:
    """The text on one line, as it was before it was wrapped."""
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(
    ("cls", "prefix"),
    [
        (ModelArgs, "model."),
        (LoRAArgs, "model.lora."),
        (OptimizerConfig, "optimizer."),
        (ParallelArgs, "parallel."),
        (PlanArgs, "plan."),
        (fake_plugins.RowsConfig, "dataset."),
        (SFTConfig, ""),
    ],
)
def test_every_field_is_there_with_its_help(cls, prefix):
    text = page()
    for field in dataclasses.fields(cls):
        assert field.metadata["help"], f"{cls.__name__}.{field.name} has no help"
        assert joined(field.metadata["help"]) in joined(text)
        if field.name not in ("model", "lora", "dataset", "optimizer", "parallel", "plan"):
            assert f"\n  {prefix}{field.name}  " in text


def test_every_key_has_type_and_default():
    lines = page().splitlines()
    for group in groups(SFTConfig):
        for key in group.keys:
            [line] = [line for line in lines if line.startswith(f"  {key.name}  ")]
            assert re.search(r"  \S.*, (required|default \S.*)$", line)
    assert "  optimizer.schedule  cosine|linear|constant, default cosine" in lines
    assert "  model.path  str, required" in lines
    assert "  max_steps  int|null, default null" in lines
    assert "  loggers  list[str], default [jsonl,tensorboard]" in lines


def test_it_fits_80_columns():
    assert max(len(line) for line in page().splitlines()) <= 80


def test_it_begins_with_a_command_to_copy():
    assert "\n  reallm sft model.path=... dataset.train_path=...\n" in page()


def test_another_dataset_shows_its_own_keys():
    text = page("dataset.name=my-dataset", "nonsense")
    assert "dataset.my_arg  int, required" in text
    assert "which dataset; installed: my-dataset, prompt_answer" in text
    assert "dataset.train_path" not in text
    assert "reallm sft model.path=... dataset.my_arg=..." in text


def test_a_dataset_named_in_a_file_shows_its_keys(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset:\n  name: my-dataset\n")
    assert "dataset.my_arg" in help_text("sft", fake_plugins.OFFERS["algorithm"]["sft"], [], [path])


def test_without_the_dataset_it_says_what_to_install(monkeypatch):
    fake_plugins.install(monkeypatch, without="prompt_answer")
    text = page()
    assert "no dataset 'prompt_answer' is installed; pip install the-package" in joined(text)
    assert "optimizer.lr  float" in text
