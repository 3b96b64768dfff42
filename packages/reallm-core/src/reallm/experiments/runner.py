"""`run`: trains what a configuration describes, and leaves a run folder behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from reallm.algorithms.graph import execution_order
from reallm.algorithms.spec import Algorithm, ModelFunctionCall
from reallm.errors import ReallmError
from reallm.experiments import resume
from reallm.experiments.closing import closing_lines, write_pages
from reallm.experiments.config_load import describe
from reallm.experiments.dataflow import Dataflow
from reallm.experiments.determinism import deterministic_kernels
from reallm.experiments.examples import Examples, choose, forget_after
from reallm.experiments.interrupt import stop_requests
from reallm.experiments.logs import Loggers, logger_specs
from reallm.experiments.loop import Loop, Parts
from reallm.experiments.memory_check import memory_lines
from reallm.experiments.progress import TrainingProgress
from reallm.experiments.resume_point import ResumePoint, resume_point
from reallm.experiments.run_folder import RunFolder, plain
from reallm.experiments.saved_state import load_engine
from reallm.experiments.saving import Saver
from reallm.experiments.setup import (
    Data,
    LoadedModel,
    described,
    load_data,
    load_models,
    make_interfaces,
    overview,
    trained_roles,
)
from reallm.experiments.survey import histogram
from reallm.experiments.training_config import TrainingConfig

Say = Callable[[str], None]


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


def run(config: TrainingConfig, algorithm: Algorithm, *, console: Console | None = None) -> RunResult:
    """Train, evaluate, log and save as `config` says, walking the graph of `algorithm` once a step.

    What the run folder holds is listed in docs/training.md. Ctrl-C or SIGTERM ends the run after the step in progress,
    and saves; `config.resume` goes on from the last save, however the run ended.

    Args:
        config: of the algorithm's configuration class, such as `SFTConfig`.
        algorithm: graph and interfaces, as in `registry.get("algorithm", "sft")`.
        console: where progress goes; None is the standard output.

    Raises:
        ReallmError: in one line, what in the configuration, the data or the checkpoint is wrong, or that training
            went astray.
    """
    console = console or Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    order = execution_order(algorithm.graph)
    logger_specs(config.loggers)  # an unknown one is named before a folder is made
    kind = type(config).__name__.removesuffix("Config").lower()
    settings = plain(describe(config).tree())
    found = resume.find(config.resume, config.output_dir, config.name, settings)
    folder = found or RunFolder.create(config.output_dir, config.name, default_prefix=kind)
    with folder.locked(), deterministic_kernels(config.deterministic):
        try:
            changed = {} if found is None else resume.changes(resume.read_settings(found), settings)
            if found is not None and found.status() == "done" and not changed:
                say(f"{folder.path} is complete; raise epochs or max_steps to train on")
                return _earlier_result(folder)
            point = None if found is None else resume_point(folder, changed, auto=config.resume == resume.AUTO, say=say)
            started = _start(config, algorithm, order, kind, folder, point, say)
        except BaseException:
            if found is None:
                folder.remove_if_empty()
            raise
        return _train(started, settings, console, say)


@dataclass(frozen=True)
class _Started:
    """Everything loaded and checked; nothing written yet."""

    config: TrainingConfig
    kind: str
    order: list[ModelFunctionCall]
    folder: RunFolder
    point: ResumePoint | None
    data: Data
    models: Mapping[str, LoadedModel]
    lines: list[str]


def _start(
    config: TrainingConfig,
    algorithm: Algorithm,
    order: list[ModelFunctionCall],
    kind: str,
    folder: RunFolder,
    point: ResumePoint | None,
    say: Say,
) -> _Started:
    state = None if point is None else point.state
    interfaces = make_interfaces(algorithm, order)
    data = load_data(config, order, interfaces)
    if state is not None:
        resume.refuse_other_data(state.data, data.fingerprint)
    about_memory = memory_lines(config, trained_roles(order), data.survey.largest)
    models = load_models(config, interfaces, order, data.plan.total_steps, None if point is None else point.checkpoint)
    if point is not None and state is not None and point.checkpoint is not None:
        for role, loaded in models.items():
            if loaded.role.engine is not None:
                load_engine(role, loaded.role.engine, state, point.checkpoint)
    lines = [*overview(config, data, models, folder.path), *about_memory]
    return _Started(config, kind, order, folder, point, data, models, lines)


def _train(started: _Started, settings: Mapping[str, Any], console: Console, say: Say) -> RunResult:
    config, folder, data, models = started.config, started.folder, started.data, started.models
    state = None if started.point is None else started.point.state
    folder.write_config(settings)
    folder.write_data(_data_page(data))
    for line in started.lines:
        say(line)

    progress = TrainingProgress(console, data.plan.total_steps)
    logged_until = None if started.point is None else started.point.logged_until
    if logged_until is not None:
        forget_after(folder.samples, logged_until)
    loggers = Loggers(logger_specs(config.loggers), folder.path, settings, say, resume_step=logged_until)
    newest = None if started.point is None else started.point.checkpoint
    loop = Loop(
        Parts(
            algorithm=started.kind,
            started=folder.started() or datetime.now().isoformat(timespec="seconds"),
            config=config,
            data=data,
            models=models,
            dataflow=Dataflow(started.order, {name: loaded.role for name, loaded in models.items()}),
            folder=folder,
            loggers=loggers,
            progress=progress,
            saver=Saver(folder, keep_last=config.keep_last, in_background=config.async_save, newest=newest),
            examples=_examples(started),
        ),
        state,
    )
    loop.write_summary("running")
    if state is not None:
        state.generators.restore()
    try:
        with stop_requests() as stop, progress:
            loop.run(stop)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        loop.write_summary("stopped" if stopped else "failed", None if stopped else _one_line(error))
        if isinstance(error, ReallmError) and loop.newest is not None:
            say(f"saved after step {loop.saved_step}; to go on: reallm {started.kind} resume={folder.path}")
        raise
    finally:
        loggers.close()

    loop.write_summary("done" if loop.is_done else "stopped")
    write_pages(folder, say)
    result = RunResult(folder.path, loop.newest, loop.step, not loop.is_done, loop.metrics)
    for line in closing_lines(result.checkpoint, loop, folder, started.kind):
        say(line)
    return result


def _examples(started: _Started) -> Examples | None:
    """What is generated at evaluations, by the model that is trained first."""
    config, data = started.config, started.data
    trained = started.models[trained_roles(started.order)[0]].role
    if data.valid is None or trained.model.config.is_critic:
        return None
    chosen = choose(data.valid, trained.interface, config.eval_generations)
    if not chosen:
        return None
    return Examples(trained.model, data.tokenizer, chosen, started.folder.samples, config.eval_max_new_tokens)


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


def _earlier_result(folder: RunFolder) -> RunResult:
    summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    checkpoint = summary["checkpoint"]
    metrics = {name: float("nan") if value is None else value for name, value in summary["metrics"].items()}
    return RunResult(
        folder.path, None if checkpoint is None else folder.path / checkpoint, summary["steps"], False, metrics
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
