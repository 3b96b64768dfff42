"""Folders of runs: their names, and the link to the last checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reallm.errors import ConfigError
from reallm.experiments.runs.folder import RunFolder

ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
"""YAML of some lines that holds 2 ** 60 texts."""


def test_two_runs_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {RunFolder.create(tmp_path, None, "sft").path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.name.startswith("sft-") for folder in folders)


def test_the_link_to_the_last_checkpoint_moves_on(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run", "sft")
    for step in (1, 2):
        folder.checkpoint(step).mkdir(parents=True)
        folder.point(folder.last_checkpoint, folder.checkpoint(step))
        assert folder.last_checkpoint.resolve() == folder.checkpoint(step).resolve()


def test_the_command_to_resume_says_that_the_code_in_the_settings_is_trusted(tmp_path):
    folder = RunFolder(tmp_path / "my run")
    folder.write_config({"dataset": {"train_path": "train.jsonl"}})
    assert folder.resume_command("sft") == f"reallm sft 'resume={tmp_path}/my run'"
    folder.write_config({"reward": {"functions": ["math", "rewards.py:score"]}})
    assert folder.resume_command("grpo") == f"reallm grpo 'resume={tmp_path}/my run' --trust-code"
    assert folder.resume_command("grpo", is_own=False) == f"reallm grpo 'resume={tmp_path}/my run'"
    assert folder.resume_command(None) == f"'resume={tmp_path}/my run' --trust-code"


@pytest.mark.parametrize(
    "settings", ["a: &a [*a]", "a: [", "[" * 5000, ALIASES], ids=["itself", "cut", "deep", "aliases"]
)
def test_damaged_or_hostile_settings_do_not_keep_the_command_to_resume_from_being_shown(tmp_path, settings):
    folder = RunFolder(tmp_path)
    folder.config.write_text(settings)
    assert folder.resume_command("sft") == f"reallm sft resume={tmp_path}"


@pytest.mark.parametrize(
    "entry", ["metrics.jsonl", ".lock", "tensorboard", "checkpoints", "checkpoints/step-000006", "checkpoints/new"]
)
def test_nothing_is_written_through_links_out_of_the_folder_of_a_run(tmp_path, entry):
    folder, mine = RunFolder(tmp_path / "theirs"), tmp_path / "mine"
    (folder.path / entry).parent.mkdir(parents=True)
    (folder.path / entry).symlink_to(mine)
    with pytest.raises(ConfigError, match=rf"{entry} is a link that leads out of .*, to '{mine}'"), folder.locked():
        pass
    assert not mine.exists()


def test_a_run_folder_with_a_pipe_is_refused_and_not_waited_for(tmp_path):
    folder = RunFolder(tmp_path)
    os.mkfifo(folder.metrics)
    with pytest.raises(ConfigError, match=r"metrics.jsonl cannot be read \(it is not a regular file\); remove it"):
        folder.locked().__enter__()


def test_links_within_a_run_folder_and_to_it_are_fine(tmp_path):
    RunFolder.create(tmp_path / "disk", "run", "sft")
    (tmp_path / "runs").symlink_to("disk")
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.checkpoint(1).mkdir(parents=True)
    folder.point(folder.last_checkpoint, folder.checkpoint(1))
    with folder.locked():
        assert folder.lock_file.exists()


def test_a_run_is_not_written_into_a_folder_that_another_user_has_put_where_everyone_can(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0o1777)
    assert RunFolder.create(tmp_path, "run", "sft").path == tmp_path / "run"
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(ConfigError, match=r"the run folder .*/run belongs to .*; give another name= or output_dir="):
        RunFolder.create(tmp_path, "run", "sft")
