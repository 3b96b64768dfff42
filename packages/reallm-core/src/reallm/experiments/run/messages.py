"""The last lines of a run: what has been done, and what can be done now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from reallm.algorithms.executor import LoadedModel
from reallm.config.training import TrainingConfig
from reallm.experiments.reports.number_format import counted, duration
from reallm.experiments.run.setup import Data, described
from reallm.experiments.run.trainer import Trainer
from reallm.experiments.runs.folder import RunFolder

if TYPE_CHECKING:
    pass


def closing_lines(loop: Trainer, folder: RunFolder, kind: str) -> list[str]:
    """Lines for a run of the algorithm `kind` that has ended in good order."""
    lines = [f"{'done' if loop.is_done else 'stopped'} after {counted(loop.step, 'step')} in {duration(loop.seconds)}"]
    checkpoint = loop.newest
    if checkpoint is None:
        return [*lines, "nothing is saved: there was no step to save"]
    if not loop.is_done:
        lines.append(f"to go on: reallm {kind} resume={folder.path}")
    lines.append(f"to look at: {folder.page}   curves: {folder.plot}   numbers: {folder.metrics}")
    if loop.best is not None:
        where = folder.path / loop.best.checkpoint
        lines.append(f"best {loop.best.metric}: {loop.best.value:.4g} after step {loop.best.step}, {where}")
    return [
        *lines,
        f"checkpoint: {checkpoint}",
        "with transformers:",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'    tokenizer = AutoTokenizer.from_pretrained("{checkpoint}")',
        f'    model = AutoModelForCausalLM.from_pretrained("{checkpoint}")',
        f'or: reallm generate --model {checkpoint} "Once upon a time"',
    ]


def overview(config: TrainingConfig, data: Data, models: Mapping[str, LoadedModel], folder: object) -> list[str]:
    """What is going to happen, one line for each subject."""
    lines = []
    for name, loaded in models.items():
        model = loaded.role.model
        where = f"{_dtype_name(model.dtype)} on {model.device}"
        if model.mesh is not None:
            where += f", spread as {model.layout} over {model.layout.size} processes"
        lines.append(f"{name}: {loaded.args.path}, {loaded.n_parameters:,} parameters, {where}")
    lines.append(f"train: {described(data.train)}")
    if data.valid is not None:
        lines.append(f"valid: {described(data.valid)}")
    plan, seen, optimizer = data.plan, data.survey, config.optimizer
    about = "" if seen.is_whole else "about "
    lines.append(
        f"plan: {counted(plan.total_steps, 'step')} of {counted(min(plan.batch_size, plan.n_rows), 'sample')}, "
        f"{plan.steps_per_epoch:,} an epoch; lr {optimizer.lr:g} {optimizer.schedule}"
    )
    n_parts = seen.micro_batches_per_step
    lines.append(
        f"step: {about}{seen.tokens_per_step:,.0f} tokens on average, in "
        f"{'one micro-batch' if n_parts == 1 else f'{about}{n_parts:.3g} micro-batches'} of at most "
        f"{max(config.max_tokens_per_microbatch, sum(seen.largest)):,}"
    )
    lines.append(f"run folder: {folder}")
    return lines


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
