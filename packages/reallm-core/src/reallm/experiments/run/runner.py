"""`run`: trains what a configuration describes, and leaves a run folder behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from reallm.algorithms.executor import GraphExecutor, LoadedModel, execution_order
from reallm.config.load import describe
from reallm.config.training import TrainingConfig, model_args
from reallm.data.dataset_stats import histogram
from reallm.errors import ReallmError
from reallm.experiments.checkpointing import resume
from reallm.experiments.checkpointing.checkpointer import Checkpointer
from reallm.experiments.checkpointing.open_run import OpenRun, open_run
from reallm.experiments.checkpointing.resume_point import ResumePoint, resume_point
from reallm.experiments.preflight.consistency import settings_and_versions
from reallm.experiments.preflight.device import choose_device, deterministic_kernels
from reallm.experiments.preflight.memory import memory_lines
from reallm.experiments.reports.write import write_page, write_plot
from reallm.experiments.run.eval_samples import EvalSamples, choose, fitting, forget_after
from reallm.experiments.run.loggers import Loggers, logger_specs
from reallm.experiments.run.messages import closing_lines, overview
from reallm.experiments.run.progress import TrainingProgress
from reallm.experiments.run.setup import (
    Data,
    check_layouts,
    check_lengths,
    choose_layouts,
    described,
    load_data,
    load_models,
    make_interfaces,
    trained_roles,
)
from reallm.experiments.run.trainer import Trainer, TrainerParts
from reallm.experiments.runs.folder import RunFolder, plain
from reallm.experiments.runs.info import read_run
from reallm.launch.consistency import check_same_on_all_ranks
from reallm.launch.failure import is_peer_error
from reallm.launch.job import Job
from reallm.launch.rank_env import RankEnv
from reallm.launch.signals import SynchronizedStop, stop_requests
from reallm.parallel.layout import Layout
from reallm.specs import Algorithm, ModelFunctionCall


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    run_dir: Path
    checkpoint: Path | None
    """The newest checkpoint; None if the run was stopped before its first step."""
    steps: int
    interrupted: bool
    metrics: Mapping[str, float]
    """The last value of each metric."""


def run(
    config: TrainingConfig, algorithm: Algorithm, *, console: Console | None = None, job: Job | None = None
) -> RunResult:
    """Train, evaluate, log and save as `config` says, walking the graph of `algorithm` once a step.

    What the run folder holds is listed in docs/training.md. Ctrl-C or SIGTERM ends the run after the step in progress,
    and saves; `config.resume` goes on from the last save, however the run ended.

    In a job of many processes, started by torchrun or srun, all of them call it and get the same result. Only rank 0
    prints and writes into the run folder, except for the checkpoints, which the ranks write together.

    Args:
        config: of the algorithm's configuration class, such as `SFTConfig`.
        algorithm: graph and interfaces, as in `registry.get("algorithm", "sft")`.
        console: where progress goes; None is the standard output.
        job: the processes that train together; None: those that were started with this one, if any.

    Raises:
        ReallmError: in one line, what in the configuration, the data or the checkpoint is wrong, or that training
            went astray.
    """
    job = _own_job(config) if job is None else job
    console = (console or Console()) if job.is_rank0 else Console(quiet=True, force_terminal=False)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    order = execution_order(algorithm.graph)
    logger_specs(config.loggers)  # an unknown one is named before a folder is made
    kind = type(config).__name__.removesuffix("Config").lower()
    settings = plain(describe(config).tree())
    roles = list(dict.fromkeys(call.role for call in order))
    check_same_on_all_ranks(job, "settings", settings_and_versions(config, settings, roles), config.parallel.timeout)
    layouts = choose_layouts(config, order, job)
    device = choose_device(model_args(config, roles[0]).device, job.gpu)
    with (
        job.process_groups(device, config.parallel.timeout),
        deterministic_kernels(config.deterministic),
        ExitStack() as stack,
    ):
        opened = open_run(job, config, settings, kind, stack)
        folder, point = opened.folder, None
        if opened.is_complete:
            say(f"{folder.path} is complete; raise epochs or max_steps to train on")
            earlier = read_run(folder.path)
            return RunResult(earlier.path, earlier.checkpoint, earlier.steps, False, earlier.metrics)
        try:
            if opened.is_resume:
                auto, changed = config.resume == resume.AUTO, opened.changes(settings)
                point = resume_point(folder, changed, auto=auto, say=say, rank=job.rank)
            prepared = _prepare(config, algorithm, order, point, job, layouts)
        except BaseException:
            if job.is_rank0 and not opened.is_resume:
                folder.remove_if_empty()
            raise
        if job.is_rank0:
            folder.write_config(settings)
            folder.write_data(_data_page(prepared.data))
        for line in [*overview(config, prepared.data, prepared.models, folder.path), *prepared.about_memory]:
            say(line)
        return _train(_Run(config, kind, settings, order, job, opened, point, prepared, console, say))


def _own_job(config: TrainingConfig) -> Job:
    """The processes that were started with this one."""
    started = RankEnv.from_environment(os.environ)
    return Job() if started is None else Job.connect(started, config.parallel.timeout)


@dataclass(frozen=True)
class _Prepared:
    """Everything loaded and checked; nothing written yet."""

    data: Data
    models: Mapping[str, LoadedModel]
    about_memory: list[str]


def _prepare(
    config: TrainingConfig,
    algorithm: Algorithm,
    order: list[ModelFunctionCall],
    point: ResumePoint | None,
    job: Job,
    layouts: Mapping[str, Layout] | None,
) -> _Prepared:
    interfaces, trained = make_interfaces(algorithm, order), trained_roles(order)
    if point is not None:
        config = point.models_in_place(config, trained)
    check_layouts(config, layouts)
    data = load_data(config, order, interfaces)
    found = {"the fingerprint of dataset.train_path": data.fingerprint[:12]}
    if point is not None:
        found["the last save"] = f"that of step {point.logged_until}"
    check_same_on_all_ranks(job, "data", found, config.parallel.timeout)
    if point is not None and point.state is not None:
        resume.refuse_other_data(point.state.data, data.fingerprint)
    check_lengths(data.train, data.survey, [model_args(config, role) for role in trained])
    about_memory = memory_lines(config, trained, data.survey.largest, job, layouts)
    models = load_models(config, interfaces, order, data.plan.total_steps, job, layouts)
    if point is not None:
        point.load_into({role: models[role].role.engine for role in trained})
    return _Prepared(data, models, about_memory)


@dataclass(frozen=True)
class _Run:
    config: TrainingConfig
    kind: str
    settings: Mapping[str, Any]
    order: list[ModelFunctionCall]
    job: Job
    opened: OpenRun
    point: ResumePoint | None
    prepared: _Prepared
    console: Console
    say: Callable[[str], None]


def _train(run: _Run) -> RunResult:
    config, job, folder, say = run.config, run.job, run.opened.folder, run.say
    data, models = run.prepared.data, run.prepared.models
    state = None if run.point is None else run.point.state
    logged_until = None if run.point is None else run.point.logged_until
    if job.is_rank0 and logged_until is not None:
        forget_after(folder.samples, logged_until)
    progress = TrainingProgress(run.console, data.plan.total_steps)
    specs = logger_specs(config.loggers) if job.is_rank0 else {}
    loggers = Loggers(specs, folder.path, run.settings, say, resume_step=logged_until)
    newest = None if run.point is None else run.point.checkpoint
    loop = Trainer(
        TrainerParts(
            algorithm=run.kind,
            job=job,
            began=run.opened.began,
            config=config,
            data=data,
            models=models,
            dataflow=GraphExecutor(run.order, {name: loaded.role for name, loaded in models.items()}),
            folder=folder,
            loggers=loggers,
            progress=progress,
            saver=Checkpointer(
                folder,
                keep_last=config.keep_last,
                # ranks that save together talk to each other, as the next step does: not at the same time
                in_background=config.async_save and job.is_alone,
                newest=newest,
                is_first=job.is_rank0,
            ),
            examples=_examples(run),
        ),
        state,
    )
    loop.write_summary("running")
    if state is not None:
        state.generators.restore()
    # Until the end has been noted down too: torchrun sends SIGTERM to those whose neighbour has died.
    with stop_requests(announce=job.is_rank0) as stop:
        try:
            with progress:
                loop.run(stop if job.is_alone else SynchronizedStop(stop, job))
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            loop.write_summary("stopped" if stopped else "failed", None if stopped else _one_line(error))
            if job.is_rank0:
                write_page(folder, say)
            # of a process that is gone, whoever tells of it says also how to go on
            if isinstance(error, ReallmError) and not is_peer_error(error) and loop.newest is not None:
                say(f"the last save is {loop.newest}; to go on: reallm {run.kind} resume={folder.path}")
            raise
        finally:
            loggers.close()
    loop.write_summary("done" if loop.is_done else "stopped")
    job.broadcast_from_rank0(lambda: _write_pages(folder, say), config.parallel.timeout)
    for line in closing_lines(loop, folder, run.kind):
        say(line)
    return RunResult(folder.path, loop.newest, loop.step, not loop.is_done, loop.metrics)


def _write_pages(folder: RunFolder, say: Callable[[str], None]) -> None:
    write_page(folder, say)
    write_plot(folder, say)


def _examples(run: _Run) -> EvalSamples | None:
    """What is generated at evaluations, by the model that is trained first."""
    valid, trained = run.prepared.data.valid, run.prepared.models[trained_roles(run.order)[0]].role
    if valid is None or trained.model.config.is_critic:
        return None
    chosen = choose(valid, trained.interface, run.config.eval_generations)
    chosen, n_new = fitting(chosen, run.config.eval_max_new_tokens, trained.model.config.longest_sequence)
    if not chosen:
        return None
    samples = run.opened.folder.samples if run.job.is_rank0 else None
    return EvalSamples(trained.model, run.prepared.data.tokenizer, chosen, samples, n_new)


def _data_page(data: Data) -> dict[str, Any]:
    lengths = data.survey.lengths
    page: dict[str, Any] = {
        "train": {
            "report": described(data.train),
            "n_samples": len(data.train),
            "lengths": histogram(lengths),
            "counted": len(lengths),
        }
    }
    if data.valid is not None:
        page["valid"] = {"report": described(data.valid), "n_samples": len(data.valid)}
    return page


def _one_line(error: BaseException) -> str:
    if is_peer_error(error) and not isinstance(error, ReallmError):
        return "another process of the job has ended, or did not answer"
    return " ".join(str(error).split()) or type(error).__name__
