"""Finds the run that `resume=` names, by its name, its path or a checkpoint in it. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from reallm.arguments import as_path
from reallm.errors import ConfigError, nearest
from reallm.experiments.runs.folder import RunFolder, has_state, step_of
from reallm.experiments.runs.settings import path_key
from reallm.hf.file_names import CONFIG_NAME

CHECKPOINTS = RunFolder(Path()).checkpoints.name
"""Name of the folder of checkpoints in a run's folder."""


def find_resumable(resume: str, output_dir: str | Path) -> RunFolder:
    """The folder of the run that `resume=` names.

    Args:
        resume: path of a run folder, name of one in `output_dir`, or either with the newest checkpoint in the run.
        output_dir: folder that holds the run folders.

    Raises:
        ConfigError: there is no such run, or the checkpoint is not the newest; says what was probably meant.
    """
    path = as_path(resume)
    for candidate in (path, Path(output_dir) / path):
        if RunFolder(candidate).config.is_file():
            return RunFolder(_named(candidate))
        run = _run_of_checkpoint(candidate)
        if run is not None:
            _check_is_newest(resume, candidate, run)
            return run
    raise _not_resumable(resume, path, Path(output_dir))


def _named(path: Path) -> Path:
    """The path with a last part that is the folder's name: not `.` or `..`."""
    return path if path.name not in ("", "..") else path.resolve()


def _run_of_checkpoint(path: Path) -> RunFolder | None:
    """The run whose checkpoint `path` is, or would be if it existed."""
    for parent in (path, *path.parents):
        if parent.name == CHECKPOINTS and RunFolder(parent.parent).config.is_file():
            return RunFolder(_named(parent.parent))
    return None


def _check_is_newest(resume: str, path: Path, run: RunFolder) -> None:
    """Check that a path below the checkpoints of a run is that of the one it is resumed from."""
    below = path.relative_to(run.checkpoints) if path.is_relative_to(run.checkpoints) else Path(path.name)
    saved = run.saved_steps()
    resumable = [step for step, folder in saved.items() if has_state(folder)]
    if not below.parts or not resumable:
        return  # the folder of all checkpoints; or nothing to resume from, which is reported with the remedy
    step = step_of((run.checkpoints / below.parts[0]).resolve().name)  # it may be a link, such as `last`
    if step not in saved:
        found = ", ".join(folder.name for folder in saved.values())
        raise ConfigError(f"resume={resume}: the run {run.path} has no such checkpoint; it has {found}")
    if step != resumable[-1]:
        raise ConfigError(
            f"resume={resume}: a run can only be resumed from its newest checkpoint, here {saved[resumable[-1]].name}: "
            f"write resume={run.path}, or start a new run from this one with {path_key(run.config)}={saved[step]}"
        )


def _not_resumable(resume: str, path: Path, output_dir: Path) -> ConfigError:
    """The error for a `resume=` that names no run."""
    if (path / CONFIG_NAME).is_file():
        return ConfigError(
            f"resume={resume} is a model's checkpoint, not a run; to train it, start a new run with "
            f"model.path={resume}, or actor.path={resume}"
        )
    for folder in (path, output_dir / path):
        if folder.is_dir():
            runs = sorted(item.parent.name for item in folder.glob("*/config.yaml"))
            hint = f"; it holds the runs {', '.join(runs[-3:])}" if len(runs) > 1 else ""
            hint = f"; write resume={folder / runs[0]}" if len(runs) == 1 else hint
            return ConfigError(f"resume={resume} is not a run: {folder} has no config.yaml{hint}")
    path = next((above.parent for above in path.parents if above.name == CHECKPOINTS), path)
    parents = [path.parent, output_dir] if len(path.parts) > 1 else [output_dir, path.parent]
    for parent in parents:
        near = nearest(path.name, [item.parent.name for item in parent.glob("*/config.yaml")])
        if near:
            name = near if parent == output_dir else parent / near
            return ConfigError(f"resume={resume}: there is no such run; did you mean '{name}'?")
    if len(path.parts) > 1:
        return ConfigError(f"resume={resume}: there is no such folder")
    return ConfigError(f"resume={resume}: there is no such folder, nor a run of this name in {output_dir}")
