"""Messages that a run prints before its first step and after its last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reallm.algorithms.executor import Role
from reallm.config.training import TrainingConfig
from reallm.experiments.checkpointing.open_run import OpenRun
from reallm.experiments.checkpointing.train_state import Best
from reallm.experiments.reports.number_format import counted, duration
from reallm.experiments.run.setup import Data, report
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import RunInfo
from reallm.launch.job import Job


def overview(config: TrainingConfig, data: Data, roles: Mapping[str, Role], folder: RunFolder, job: Job) -> list[str]:
    """Models, data, steps and run folder, a line each."""
    lines = []
    for name, role in roles.items():
        model = role.model
        where = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
        if model.mesh is not None:
            where += f", layout {model.layout} on {model.layout.size} processes"
        lines.append(f"{name}: {role.args.path}, {role.n_parameters:,} parameters, {where}")
    lines.append(f"train: {report(data.train)}")
    if data.valid is not None:
        lines.append(f"valid: {report(data.valid)}")
    sampler, stats, optimizer = data.sampler, data.stats, config.optimizer
    about = "" if stats.is_whole else "about "
    lines.append(
        f"plan: {counted(sampler.total_steps, 'step')} of "
        f"{counted(min(sampler.batch_size, sampler.n_rows), 'sample')}, "
        f"{sampler.steps_per_epoch:,} an epoch; lr {optimizer.lr:g} {optimizer.schedule}"
    )
    n = stats.micro_batches_per_step
    lines.append(
        f"step: {about}{stats.tokens_per_step:,.0f} tokens on average, in "
        f"{'one micro-batch' if n == 1 else f'{about}{n:.3g} micro-batches'} of at most "
        f"{max(config.max_tokens_per_microbatch, sum(stats.largest)):,}"
    )
    if config.async_save and not job.is_alone:
        lines.append("saving: training waits for each save; async_save=true has no effect with several processes")
    lines.append(f"run folder: {folder.path}")
    return lines


def complete_line(run: RunInfo) -> str:
    """What is said instead of training when a run that is done is resumed."""
    if run.stop_reason is not None:
        return f"{run.path} is complete, it ended early: {run.stop_reason}; change the settings to train on"
    return f"{run.path} is complete; raise epochs or max_steps to train on"


def final_lines(
    run: OpenRun,
    *,
    is_done: bool,
    steps: int,
    seconds: float,
    checkpoint: Path | None,
    best: Best | None,
    stop_reason: str | None,
) -> list[str]:
    """The last lines of a run that ended without an error: its result, and what to do with it."""
    lines = [] if stop_reason is None else [f"ended early: {stop_reason}"]
    lines.append(f"{'done' if is_done else 'stopped'} after {counted(steps, 'step')} in {duration(seconds)}")
    if checkpoint is None:
        return [*lines, "nothing is saved: there was no step to save"]
    folder = run.folder
    if not is_done:
        lines.append(f"to resume: {run.resume_command}")
    lines.append(f"to look at: {folder.page}   curves: {folder.plot}   numbers: {folder.metrics}")
    if best is not None:
        lines.append(f"best {best.metric}: {best.value:.4g} after step {best.step}, {folder.path / best.checkpoint}")
    return [
        *lines,
        f"checkpoint: {checkpoint}",
        "with transformers:",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'    tokenizer = AutoTokenizer.from_pretrained("{checkpoint}")',
        f'    model = AutoModelForCausalLM.from_pretrained("{checkpoint}")',
        f'or: reallm generate --model {checkpoint} "Once upon a time"',
    ]
