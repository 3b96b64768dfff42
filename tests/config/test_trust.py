"""Code and environment variables that a configuration file asks for, with and without the user's word."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import RewardArgs
from reallm.config.load import load
from reallm.errors import ConfigError
from reallm.references import names_code
from tests.helpers import fake_plugins


@dataclass
class Rewarded:
    reward: RewardArgs = field(default_factory=RewardArgs)


@dataclass
class Mixed:
    mix: dict[str, Any] = field(default_factory=dict)


NEEDED = ["model.path=m", "dataset.train_path=t.jsonl"]


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_plugins.install(monkeypatch)


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        (tmp_path / "run.yaml").write_text(text)
        return tmp_path / "run.yaml"

    return write


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dataset:\n  train_path: evil.py:rows", "2: dataset.train_path=evil.py:rows"),
        ("dataset.train_path: os.path:rows", "1: dataset.train_path=os.path:rows"),
        ("dataset:\n  train_path: ${name}:rows\nname: evil", "2: dataset.train_path=evil:rows"),
    ],
)
def test_code_in_a_file_is_named_with_its_line(file, text, named):
    path = file(text)
    with pytest.raises(ConfigError) as caught:
        load(SFTConfig, [path], ["model.path=m"])
    assert str(caught.value).startswith(f"{path}:{named} would run code; add --trust-code")


def test_a_reward_function_in_a_file_too(file):
    path = file("reward:\n  functions: [math, verl:evil.mod:score]")
    with pytest.raises(ConfigError, match=r"run.yaml:2: reward.functions=verl:evil.mod:score would run code"):
        load(Rewarded, [path])


def test_with_the_users_word_and_on_the_command_line(file, monkeypatch):
    path = file("dataset.train_path: rows.py:load\nname: ${oc.env:RUN_NAME}")
    monkeypatch.setenv("RUN_NAME", "mine")
    config = load(SFTConfig, [path], ["model.path=m", "--trust-code"]).build()
    assert (config.dataset.train_path, config.name) == ("rows.py:load", "mine")
    monkeypatch.setenv("FOLDER", "m")
    config = load(SFTConfig, [], ["model.path=${oc.env:FOLDER}", "dataset.train_path=rows.py:load"]).build()
    assert (config.dataset.train_path, config.model.path) == ("rows.py:load", "m")


@pytest.mark.parametrize("given", ["rows.py:load", "t.jsonl"])
def test_the_command_line_names_the_same_code_or_replaces_it(file, given):
    path = file("dataset.train_path: rows.py:load")
    config = load(SFTConfig, [path], ["model.path=m", f"dataset.train_path={given}"]).build()
    assert config.dataset.train_path == given


@pytest.mark.parametrize("given", ["mix.b.path=t.jsonl", "mix={b: {path: t.jsonl}}"])
def test_a_source_on_the_command_line_does_not_vouch_for_those_of_a_file(file, given):
    path = file("mix:\n  a:\n    path: evil.py:rows\n  c:\n    path: c.jsonl")
    with pytest.raises(ConfigError, match=r"run.yaml:3: mix.a.path=evil.py:rows would run code"):
        load(Mixed, [path], [given])
    mixed = load(Mixed, [path], [given, "mix.a.path=a.jsonl"]).build()
    assert [mixed.mix[name]["path"] for name in "abc"] == ["a.jsonl", "t.jsonl", "c.jsonl"]


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "a-${oc.env:HOME,none}", "${oc.${x}:HOME}", "${${name}:HOME}", "${oc.decode:1}"]
)
@pytest.mark.parametrize("tag", ["", "!!binary "])
def test_a_file_does_not_read_the_environment(file, value, tag):
    letters = sum(character.isalnum() for character in value)
    value += "x" * (-letters % 4)  # base64 that YAML can decode: a value without a text
    path = file(f"name: {tag}'{value}'")
    with pytest.raises(ConfigError, match=r"run.yaml:1: name=.* would read the environment; give the value on the"):
        load(SFTConfig, [path], NEEDED)


def test_keys_that_refer_to_keys_are_fine(file):
    assert load(SFTConfig, [file("name: ${optimizer.name}-run")], NEEDED).build().name == "adamw-run"


@pytest.mark.parametrize("text", ["a.py:f", "dir with space/a.py:f", "pkg.mod:f", "verl:pkg:f", "verl:/x/y.py:f"])
def test_what_names_code(text):
    assert names_code(text)


@pytest.mark.parametrize(
    "text",
    ["hub:squad", "hub:squad:train", "hub:org/x:train", "https://a.b/c", "train.jsonl", "12:30", "a: b", "d2p2m1", ""],
)
def test_what_does_not(text):
    assert not names_code(text)
