"""Finds the run that `resume=` refers to, and refuses settings and data that it cannot continue with. No torch.

`resume=<run>` gives its path, or its name in `output_dir`. `resume=auto` means the run of this `name`, or without a
name the newest unfinished one with these settings; without such a run, a new one is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm.config.training import AUTO
from reallm.errors import ConfigError
from reallm.experiments.runs.files import is_run
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import read_run
from reallm.experiments.runs.resumable import find_resumable
from reallm.experiments.runs.settings import Diff, diff, path_key, read_settings, without_parallel

MAY_CHANGE = ("dataset.valid_path", "dataset.valid_bs_n_seqs", "dataset.num_proc", "dataset.cache_dir")
"""Keys of the dataset that training does not depend on."""


def find_run(
    resume: str | None,
    output_dir: str,
    name: str | None,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> RunFolder | None:
    """The folder of the run to resume; None to start a new one.

    Args:
        resume: value of the key `resume`.
        output_dir: folder that holds the run folders.
        name: name of the run, for `auto`.
        settings: all settings as nested mappings, for `auto` without a name.
        defaults: the defaults of all settings, for runs of versions that did not have them yet.

    Raises:
        ConfigError: there is no run of this name, or it cannot be resumed from the named checkpoint.
    """
    if resume is None:
        return None
    parent = Path(output_dir)
    if resume != AUTO:
        return find_resumable(resume, parent)
    if name is not None:
        folder = RunFolder(parent / name)
        return folder if folder.config.is_file() else None
    runs = [RunFolder(path.parent) for path in parent.glob("*/config.yaml")]
    runs.sort(key=lambda run: run.config.stat().st_mtime, reverse=True)
    for run in runs:
        unfinished = not is_run(run.path) or read_run(run.path).status not in ("done", "running")
        if unfinished and not without_parallel(diff(read_settings(run.config), settings, defaults), settings):
            return run
    return None


def refuse_changes(changed: Diff, run: RunFolder) -> None:
    """Raise an error for settings that cannot change in the middle of a run.

    Raises:
        ConfigError: such a setting has changed; names the key with both values.
    """
    for key, (before, now) in changed.items():
        is_fixed = (
            key in ("seed", "optimizer.name")
            or key.startswith("dataset.")
            or key.endswith((".path", ".implementation", ".add_tokens", ".resize_vocab"))
            or (".lora." in key and not key.endswith(".dropout"))
        )
        if is_fixed and key not in MAY_CHANGE:
            raise ConfigError(
                f"{key}={now} cannot change in a resumed run, where it is {before}: the data order and the saved state "
                f"depend on it; leave it out, or start a new run from the checkpoint with {path_key(run.config)}="
            )


def refuse_other_data(before: str, now: str, run: RunFolder) -> None:
    """Raise an error if the training data differ from the data the run was started with.

    Raises:
        ConfigError: the fingerprints differ.
    """
    if before != now:
        raise ConfigError(
            "dataset.train_path: the samples are not those that this run was started with; put the old file back, or "
            f"start a new run from the checkpoint with {path_key(run.config)}="
        )


def resume_arguments(run: RunFolder) -> tuple[list[Path], list[str]]:
    """The files and `key=value` arguments that come first on the command line of a resumed run."""
    return [run.config], [f"output_dir={run.path.parent}", f"name={run.path.name}"]
