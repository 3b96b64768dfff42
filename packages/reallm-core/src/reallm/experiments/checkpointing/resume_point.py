"""The checkpoint that a run is resumed from: the newest one with its training state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reallm.checkpoint.checksums import CHECKSUMS, verify_checksums
from reallm.config.args import ModelArgs
from reallm.config.dataset import CHAT_TEMPLATE
from reallm.config.lora import LoRAArgs
from reallm.config.training import AUTO, TrainingConfig, model_args
from reallm.errors import ConfigError, counted
from reallm.experiments.checkpointing.open_run import OpenRun
from reallm.experiments.checkpointing.resume import refuse_changes
from reallm.experiments.checkpointing.train_state import (
    TrainState,
    follower_folder,
    load_engine,
    read_state,
    versions,
)
from reallm.experiments.runs.folder import TRAINING_STATE, has_state, n_ranks
from reallm.experiments.runs.settings import of_plan
from reallm.field_types import value_text
from reallm.launch.job import Job


@dataclass(frozen=True)
class ResumePoint:
    """A saved state and its checkpoint; both None if the run was killed before its first save."""

    checkpoint: Path | None
    state: TrainState | None

    @property
    def step(self) -> int:
        """The last step whose metrics are kept; -1: none are, the run starts from the beginning."""
        return -1 if self.state is None else self.state.step

    def with_saved_models(
        self, config: TrainingConfig, trained: Sequence[str], followers: Sequence[str]
    ) -> TrainingConfig:
        """The configuration with the saved models in place of the initial ones, which may no longer exist.

        Args:
            config: configuration of the run.
            trained: the roles that are trained.
            followers: the roles whose weights follow those of trained ones.
        """
        if self.checkpoint is None:
            return config
        saved = {role: self.checkpoint if len(trained) == 1 else self.checkpoint / role for role in trained}
        saved |= {role: follower_folder(self.checkpoint, role) for role in followers}
        models: dict[str, Any] = {role: _with_saved(model_args(config, role), path) for role, path in saved.items()}
        dataset = config.dataset
        if getattr(dataset, CHAT_TEMPLATE, None) is not None:  # saved with the model, while its file may have changed
            dataset = replace(dataset, **{CHAT_TEMPLATE: None})
        return replace(config, dataset=dataset, **models)

    def load_into(self, engines: Mapping[str, Any]) -> None:
        """Load the saved state into the engines of the trained roles.

        Raises:
            CheckpointError: the state does not belong to these models.
        """
        if self.state is not None and self.checkpoint is not None:
            for role, engine in engines.items():
                load_engine(role, engine, self.state, self.checkpoint)


def _with_saved(args: ModelArgs, path: Path) -> ModelArgs:
    """The arguments of a model whose weights, or those of its adapters, are saved in a folder."""
    if args.lora.is_on:
        lora = LoRAArgs(path=str(path), dropout=args.lora.dropout, quantize_base=args.lora.quantize_base)
        return replace(args, lora=lora)
    return replace(args, path=str(path))


def resume_point(run: OpenRun, resume: str | None, echo: Callable[[str], None], job: Job) -> ResumePoint | None:
    """Read the state that a run is resumed from, and print what has changed since; None for a new run.

    Printed are its step, changed settings, whether its execution plan is another one, and other versions of packages.

    Args:
        run: the opened run.
        resume: value of the key `resume`; with `auto`, a run that has saved nothing starts from the beginning.
        echo: prints a line.
        job: the processes of the run.

    Raises:
        ConfigError: nothing is saved, or a setting cannot change.
        CheckpointError: the saved state is damaged.
    """
    if not run.is_resume:
        return None
    refuse_changes(run.changed, run.folder)
    folder = run.folder
    saved = [path for path in folder.saved_steps().values() if has_state(path)]
    if not saved and resume != AUTO:
        raise ConfigError(
            f"resume={folder.path}: nothing is saved there yet; begin again in the same folder with resume=auto "
            f"name={folder.path.name} output_dir={folder.path.parent}"
        )
    if not saved:
        echo(f"{folder.path}: nothing is saved there yet, starting from the beginning")
        return ResumePoint(None, None)
    compared = verify_checksums(saved[-1], (TRAINING_STATE,), share=(job.rank, job.size))
    state, written_with = read_state(saved[-1], job.rank)
    echo(f"resuming {folder.path} after step {state.step}")
    for without in compared.without:
        echo(f"note: {without} has no {CHECKSUMS}; damage to its files is not noticed")
    for key, (before, now) in run.changed.items():
        echo(f"changed: {key} {value_text(before)} -> {value_text(now)}")
    before = n_ranks(saved[-1])
    if max(before, job.size) > 1:
        echo(
            _plan_line(
                is_same=before == job.size and not of_plan(run.changed, run.settings), before=before, now=job.size
            )
        )
    for name, now in versions().items():
        if written_with.get(name) != now:
            echo(f"note: saved with {name} {written_with.get(name)}, this is {now}; last digits may differ")
    return ResumePoint(saved[-1], state)


def _plan_line(*, is_same: bool, before: int, now: int) -> str:
    """Whether a resumed run has the execution plan that it had, given its numbers of processes."""
    on = f"on {counted(now, 'process', 'processes')}"
    if is_same:
        return f"execution plan: as before, {on}"
    return f"execution plan: changed, {on}{'' if now == before else f' instead of {before}'}; last digits may differ"
