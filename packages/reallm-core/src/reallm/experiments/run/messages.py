"""Messages that a run prints before its first step and after its last."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.config.args import ModelArgs
from reallm.config.training import TrainingConfig, max_tokens_per_microbatch
from reallm.data.datasets import Samples
from reallm.data.mixture import MixedSamples
from reallm.errors import counted
from reallm.experiments.checkpointing.open_run import OpenRun
from reallm.experiments.checkpointing.state_file import Best
from reallm.experiments.reports.loading_code import is_reward_model, loading_code, models_of
from reallm.experiments.reports.number_format import duration
from reallm.experiments.run.plan import Plan
from reallm.experiments.run.setup import report
from reallm.experiments.runs.info import RunInfo
from reallm.experiments.runs.metrics import read_curves
from reallm.experiments.runs.reward_failures import reward_failures
from reallm.launch.job import Job
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import n_parameters
from reallm.parallel.layout import Layout


def model_line(name: str, role: Role, config: TrainingConfig, placement: Placement) -> str:
    """The line about a loaded model."""
    if role.base_of is not None:
        return base_model_line(name, role.base_of, role.args)
    model = role.model
    layouts = None if model.mesh is None else placement.calls_of(name)
    return planned_model_line(
        name, role.args.path, model.config, model.dtype, model.device, layouts, config.parallel.zero
    )


def base_model_line(name: str, trained: str, args: ModelArgs) -> str:
    """The line about a role that shares the base model of a trained one."""
    if args.lora.is_on:
        return f"{name}: the model of {trained} with the adapter that training began with, {args.lora.path}"
    return f"{name}: the model of {trained} without its adapters"


def planned_model_line(
    name: str,
    path: str,
    model: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    layouts: Mapping[str, Layout] | None,
    zero: int,
) -> str:
    """`model: path, 134,515,008 parameters, float32 on cpu, dp=2 tp=2 on 4 processes, ZeRO stage 1`.

    Where calls to it have several layouts, each is named: `actor_gen in dp4, actor_train in tp2pp2`.

    Args:
        name: role of the model.
        path: its checkpoint.
        model: its architecture.
        dtype: dtype of its parameters.
        device: device on which it is.
        layouts: the layout of each call to it; None for a single process.
        zero: ZeRO stage, said if a layout shards anything by it.
    """
    parts = [path, f"{n_parameters(model):,} parameters", f"{str(dtype).removeprefix('torch.')} on {device}"]
    if model.lora is not None:
        n_of_adapters = n_parameters(model) - n_parameters(model.base)
        parts[1] += f" ({n_of_adapters:,} of LoRA adapters of rank {model.lora.rank})"
    if model.base_is_quantized:
        parts[2] = f"base in 4 bits, products in {parts[2]}"
    different = list(dict.fromkeys((layouts or {}).values()))
    if len(different) == 1:
        (layout,) = different
        sizes = {"dp": layout.dp, "pp": layout.pp, "tp": layout.tp}
        chosen = " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        count = counted(layout.size, "process", "processes")
        ranks = f" (rank{'s' * (layout.size > 1)} {layout.short.rpartition('@')[2]})" if "@" in layout.short else ""
        parts.append(f"{chosen} on {count}{ranks}".strip())
    elif layouts is not None:
        parts += [f"{call} in {layout.short}" for call, layout in layouts.items()]
    if any(layout.fsdp for layout in different):
        parts.append(f"ZeRO stage {zero}")
    return f"{name}: {', '.join(parts)}"


def overview(plan: Plan, run: OpenRun, job: Job, models: Sequence[str]) -> list[str]:
    """Models, data, steps, memory and run folder, a line each, with the given lines about models."""
    config, data, lines = plan.config, plan.data, list(models)
    lines += _data_lines("train", data.train)
    if data.valid is not None:
        lines += _data_lines("valid", data.valid)
    lines += plan.too_long
    sampler, stats, optimizer = data.sampler, data.stats, config.optimizer
    about = "" if stats.is_whole else "about "
    lines.append(
        f"plan: {counted(sampler.total_steps, 'step')} of "
        f"{counted(min(sampler.batch_size, sampler.n_rows), 'sample')}, "
        f"{sampler.steps_per_epoch:,} an epoch; lr {optimizer.lr:g} {optimizer.schedule}"
    )
    n, call = stats.micro_batches_per_step, plan.placement.graph.train_calls[0]
    max_tokens = max_tokens_per_microbatch(config, call.role, call.name)
    lines.append(
        f"step: {about}{stats.tokens_per_step:,.0f} tokens on average, in "
        f"{'one micro-batch' if n == 1 else f'{about}{n:.3g} micro-batches'} of at most "
        f"{max(max_tokens, sum(stats.largest)):,}"
    )
    if config.async_save and not job.is_alone:
        lines.append("saving: training waits for each save; async_save=true has no effect with several processes")
    return [*lines, f"run folder: {run.folder.path}", *plan.memory]


def _data_lines(split: str, samples: Samples) -> list[str]:
    """The report of a split, and of each source if it is a mixture."""
    lines = [f"{split}: {report(samples)}"]
    if isinstance(samples, MixedSamples):
        lines += [f"{split}, {name}: {report(source)}" for name, source in samples.sources.items()]
    return lines


def complete_line(run: RunInfo) -> str:
    """What is said instead of training when a run that is done is resumed."""
    if run.stop_reason is not None:
        return f"{run.path} is complete; it ended early: {run.stop_reason}; change the settings to train on"
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
    question: str,
) -> list[str]:
    """The last lines of a run that ended without an error: its result, and what to do with it.

    `question` is the end of a `reallm generate` command that asks the model something.
    """
    folder = run.folder
    lines = reward_failures(read_curves(folder.metrics))
    if stop_reason is not None:
        lines.append(f"ended early: {stop_reason}")
    lines.append(f"{'done' if is_done else 'stopped'} after {counted(steps, 'step')} in {duration(seconds)}")
    if checkpoint is None:
        return [*lines, "nothing is saved: there was no step to save"]
    if not is_done:
        lines.append(f"to resume: {run.resume_command}")
    curves = f"   curves: {folder.plot}" if folder.plot.is_file() else ""
    lines.append(f"to look at: {folder.page}{curves}   numbers: {folder.metrics}")
    if best is not None:
        lines.append(f"best {best.metric}: {best.value:.4g} after step {best.step}, {folder.path / best.checkpoint}")
    model = models_of(checkpoint)[0]
    code = loading_code(model)
    lines += [f"checkpoint: {checkpoint}", f"with {code.package}:"]
    lines += [f"    {line}" for line in (*code.imports, *code.statements)]
    if not is_reward_model(model):
        lines.append(f"or: reallm generate --model {shlex.quote(str(model))} {question}")
    return lines
