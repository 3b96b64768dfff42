"""Folders of runs: their names, and the link to the last checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert folder.resume_command(None) == f"'resume={tmp_path}/my run' --trust-code"


@pytest.mark.parametrize(
    "settings", ["a: &a [*a]", "a: [", "[" * 5000, ALIASES], ids=["itself", "cut", "deep", "aliases"]
)
def test_damaged_or_hostile_settings_do_not_keep_the_command_to_resume_from_being_shown(tmp_path, settings):
    folder = RunFolder(tmp_path)
    folder.config.write_text(settings)
    assert folder.resume_command("sft") == f"reallm sft resume={tmp_path}"
