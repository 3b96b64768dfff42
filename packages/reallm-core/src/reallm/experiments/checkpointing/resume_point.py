"""Where exactly a run goes on: the newest checkpoint with its training state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reallm.config.schema import value_text
from reallm.config.training import TrainingConfig, model_args
from reallm.errors import ConfigError
from reallm.experiments.checkpointing.resume import refuse_changes
from reallm.experiments.checkpointing.train_state import TrainState, has_state, load_engine, read_state, versions
from reallm.experiments.runs.folder import RunFolder


@dataclass(frozen=True)
class ResumePoint:
    """A saved state and its checkpoint; neither if the run was killed before its first save."""

    checkpoint: Path | None
    state: TrainState | None

    @property
    def logged_until(self) -> int:
        """The last step whose metrics still count; -1: none do."""
        return -1 if self.state is None else self.state.step

    def models_in_place(self, config: TrainingConfig, trained: Sequence[str]) -> TrainingConfig:
        """The configuration with the saved models in place of where they once came from, which may be gone by now."""
        if self.checkpoint is None:
            return config
        saved = {role: self.checkpoint if len(trained) == 1 else self.checkpoint / role for role in trained}
        models: dict[str, Any] = {
            role: replace(model_args(config, role), path=str(path)) for role, path in saved.items()
        }
        return replace(config, **models)

    def load_into(self, engines: Mapping[str, Any]) -> None:
        """Put the saved state into the engines of the trained roles.

        Raises:
            CheckpointError: the state is not that of these models.
        """
        if self.state is not None and self.checkpoint is not None:
            for role, engine in engines.items():
                load_engine(role, engine, self.state, self.checkpoint)


def resume_point(
    folder: RunFolder, changed: Mapping[str, tuple[Any, Any]], *, auto: bool, say: Callable[[str], None], rank: int = 0
) -> ResumePoint:
    """Find where a run goes on, and say so.

    Args:
        folder: of the run.
        changed: settings that are not those it was begun with.
        auto: begin anew where nothing is saved yet.
        say: prints a line.
        rank: of this process in its job.

    Raises:
        ConfigError: nothing is saved, or a setting cannot change.
        CheckpointError: the saved state is damaged.
    """
    refuse_changes(changed)
    saved = [path for path in folder.saved_steps().values() if has_state(path)]
    if not saved and not auto:
        raise ConfigError(
            f"resume={folder.path}: nothing is saved there yet; begin again in the same folder with resume=auto "
            f"name={folder.path.name} output_dir={folder.path.parent}"
        )
    if not saved:
        say(f"{folder.path}: nothing is saved there yet, beginning anew")
        return ResumePoint(None, None)
    state, written_with = read_state(saved[-1], rank)
    say(f"resuming {folder.path} after step {state.step}")
    for key, (before, now) in changed.items():
        say(f"changed: {key} {value_text(before)} -> {value_text(now)}")
    for name, now in versions().items():
        if written_with.get(name) != now:
            say(f"note: saved with {name} {written_with.get(name)}, this is {now}; last digits may differ")
    return ResumePoint(saved[-1], state)
