"""Which run `resume=` means, and whether it can go on with the settings and data of now. Imports no torch.

`resume=<run folder>` names it. `resume=auto` means the run of this `name`, or without a name the newest unfinished one
with these settings; where there is none, a new one is begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from reallm.config.parallel import PREFIX
from reallm.errors import ConfigError, did_you_mean
from reallm.experiments.runs.files import is_run
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import read_run

AUTO = "auto"

_NOT_OF_THE_RUN = frozenset({"resume", "name", "output_dir"})
"""Keys that say where a run is and not what it does."""

_FREE = ("dataset.valid_path", "dataset.valid_bs_n_seqs")
"""Keys of the dataset that decide nothing about training."""


def find(resume: str | None, output_dir: str, name: str | None, settings: Mapping[str, Any]) -> RunFolder | None:
    """The folder of the run to continue; None to begin a new one.

    Args:
        resume: what the configuration says.
        output_dir: where `auto` looks.
        name: of the run, for `auto`.
        settings: all settings as nested mappings, for `auto` without a name.

    Raises:
        ConfigError: a folder that is named is not that of a run.
    """
    if resume is None:
        return None
    parent = Path(output_dir)
    if resume != AUTO:
        return named_run(Path(resume))
    if name is not None:
        folder = RunFolder(parent / name)
        return folder if folder.config.is_file() else None
    runs = [RunFolder(path.parent) for path in parent.glob("*/config.yaml")]
    runs.sort(key=lambda run: run.config.stat().st_mtime, reverse=True)
    for run in runs:
        over = is_run(run.path) and read_run(run.path).status in ("done", "running")
        if not over and not without_parallel(changes(read_settings(run), settings)):
            return run
    return None


def named_run(path: Path) -> RunFolder:
    """The run in a folder.

    Raises:
        ConfigError: there is none.
    """
    folder = RunFolder(path)
    if folder.config.is_file():
        return folder
    if path.is_dir():
        below = [item.parent.name for item in path.glob("*/config.yaml")]
        runs = f"; it holds the runs {', '.join(sorted(below)[-3:])}" if below else ""
        raise ConfigError(f"resume={path} is not the folder of a run, it has no config.yaml{runs}")
    siblings = [item.parent.name for item in path.parent.glob("*/config.yaml")] if path.parent.is_dir() else []
    raise ConfigError(f"resume={path}: there is no such folder{did_you_mean(path.name, siblings)}")


def read_settings(folder: RunFolder) -> dict[str, Any]:
    """The settings that a run was begun with, as nested mappings.

    Raises:
        ConfigError: `config.yaml` is damaged.
    """
    try:
        content = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{folder.config} cannot be read ({error}); start a new run") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{folder.config} holds no settings; start a new run")
    return content


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> value before and now, of all settings that differ and say what a run does."""
    old, new = dict(leaves(before)), dict(leaves(now))
    return {
        key: (old.get(key), new.get(key))
        for key in [*old, *(key for key in new if key not in old)]
        if key not in _NOT_OF_THE_RUN and old.get(key) != new.get(key)
    }


def without_parallel(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Of changed settings those that say what a run does, and not over how many processes."""
    return {key: values for key, values in changed.items() if not key.startswith(PREFIX)}


def refuse_changes(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse what cannot change in the middle of a run.

    Raises:
        ConfigError: names the key with both values.
    """
    for key, (before, now) in changed.items():
        fixed = key == "seed" or key.startswith("dataset.") or key.endswith(".path")
        if fixed and key not in _FREE:
            raise ConfigError(
                f"{key}={now} cannot change in a resumed run, where it is {before}: the data order and the saved state "
                "depend on it; leave it out, or start a new run from the checkpoint with model.path="
            )


def refuse_other_data(before: str, now: str) -> None:
    """Refuse training data that are not those of the run.

    Raises:
        ConfigError: the fingerprints differ.
    """
    if before != now:
        raise ConfigError(
            "dataset.train_path: the samples are not those that this run was begun with; put the old file back, or "
            "start a new run from the checkpoint with model.path="
        )


def resume_arguments(folder: RunFolder) -> tuple[list[Path], list[str]]:
    """Files and `key=value` arguments that a command line stands on when it continues a run."""
    path = folder.path
    return [folder.config], [f"output_dir={path.parent}", f"name={path.name}"]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    """Dotted key and value of everything in nested mappings."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
