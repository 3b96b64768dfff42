"""The core alone installs, imports, lists its plugins, and says what to install for the rest."""

from __future__ import annotations

import json

import pytest

import reallm as package
from reallm.errors import UnknownNameError
from reallm.plugins import registry


def test_its_own_plugins_are_listed_and_none_has_failed(reallm):
    done = reallm("plugins", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["distribution"] for row in json.loads(done.stdout)["plugins"]} == {"reallm-core"}


@pytest.mark.parametrize(
    ("kind", "name", "distribution"),
    [
        ("family", "llama", "reallm-hf-llama"),
        ("family", "codellama", "reallm-hf-llama"),
        ("family", "mixtral", "reallm-hf-mistral"),
        ("family", "qwen3_moe", "reallm-hf-qwen"),
        ("family", "gemma3", "reallm-hf-gemma"),
        ("family", "gpt2", "reallm-hf-gpt2"),
        ("family", "phi3", "reallm-hf-phi"),
        ("dataset", "prompt_answer", "reallm-datasets"),
        ("dataset", "rw_pair", "reallm-datasets"),
        ("dataset", "unpaired_preference", "reallm-datasets"),
        ("dataset", "prompt", "reallm-datasets"),
    ],
)
def test_asking_for_what_is_not_installed_says_what_to_install(kind, name, distribution):
    with pytest.raises(UnknownNameError, match=f"pip install {distribution}"):
        registry.get(kind, name)


def test_a_dataset_config_says_what_to_install():
    with pytest.raises(UnknownNameError, match="pip install reallm-datasets"):
        package.PromptAnswerDatasetConfig


def test_sft_without_a_dataset_is_one_clear_line(reallm):
    done = reallm("sft", "model.path=.", "dataset.train_path=rows.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install reallm-datasets" in done.stderr


def test_help_works(reallm):
    done = reallm("--help")
    assert done.returncode == 0
    assert "sft" in done.stdout


@pytest.mark.parametrize(("command", "arguments"), [("check", ["jsonl"]), ("new", ["logger", "my-log"])])
def test_a_command_of_the_devkit_says_what_to_install(reallm, command, arguments):
    done = reallm("plugins", command, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: reallm plugins {command} needs reallm-devkit; pip install reallm-devkit\n"
    assert reallm("plugins", command, "--help").returncode == 0


def test_the_old_name_of_the_kit_says_what_to_install():
    with pytest.raises(ImportError, match="pip install reallm-devkit"):
        from reallm.testing import DatasetKit  # noqa: F401
