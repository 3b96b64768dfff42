"""`TrainingConfig`: where a run writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reallm.config.training import AUTO, TrainingConfig
from reallm.errors import ConfigError
from tests.helpers import fake_plugins

ROWS = fake_plugins.RowsConfig(train_path="t.jsonl")


@pytest.mark.parametrize("name", ["first-try", "007", "lr=1e-5, b", "a.b", "größer"])
def test_a_name_is_one_part_of_a_path(name):
    assert TrainingConfig(dataset=ROWS, name=name).name == name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "../../x", "name=../../x: a name is not a path; put the folder into output_dir: output_dir=../.. "
                            "name=x"),
        ("name", "may/x", "name=may/x: a name is not a path; put the folder into output_dir: output_dir=may name=x"),
        ("name", "/tmp/x", "name=/tmp/x: a name is not a path; put the folder into output_dir: output_dir=/tmp name=x"),
        ("name", "x/..", "name=x/..: a name is not a path; leave / out"),
        ("name", "/x", "name=/x: a name is not a path; put the folder into output_dir: output_dir=/ name=x"),
        ("name", "..", "name=..: a name must not begin with a dot, which would hide the run folder"),
        ("name", ".x", "name=.x: a name must not begin with a dot, which would hide the run folder"),
        ("name", "a\nb", r"name='a\nb': a name must not contain control characters"),
        ("name", "", "name is empty; give it a value, or leave it out"),
        ("name", "  ", "name is empty; give it a value, or leave it out"),
        ("output_dir", "", "output_dir is empty; give it a value, or leave it out"),
        ("output_dir", "~nobody-has-it/x", "the path ~nobody-has-it/x cannot be used (Could not determine home "
                                           "directory.); give another one"),
        ("resume", "", "resume is empty; give it a value, or leave it out"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_meant_is_refused(key, value, message):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(dataset=ROWS, **{key: value})
    assert str(caught.value) == message


def test_a_new_run_is_named_so_with_resume_auto_too():
    with pytest.raises(ConfigError, match="is not a path"):
        TrainingConfig(dataset=ROWS, name="a/b", resume=AUTO)
    assert TrainingConfig(dataset=ROWS, name=".earlier", resume="runs/.earlier").name == ".earlier"


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert TrainingConfig(dataset=ROWS, output_dir="~/runs").output_dir == str(Path("/home/ada/runs"))
