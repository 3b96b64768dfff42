"""`run`: trains as a configuration describes, and writes a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from reallm.algorithms.graph import Graph
from reallm.config.load import describe
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError, ReallmError, kind_of, one_line
from reallm.experiments.checkpointing.open_run import open_run
from reallm.experiments.reports.write import write_page, write_plot
from reallm.experiments.run.allocation import with_allocation
from reallm.experiments.run.hub import push_run
from reallm.experiments.run.messages import complete_line, final_lines
from reallm.experiments.run.plan import check_names
from reallm.experiments.run.progress import print_line
from reallm.experiments.run.setup import distributed_context, prompt_lengths
from reallm.experiments.run.trainer import Trainer
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import read_run
from reallm.experiments.runs.settings import plain
from reallm.launch.failure import is_peer_error
from reallm.launch.job import Job
from reallm.launch.rank_env import RankEnv
from reallm.launch.signals import SynchronizedStop, stop_requests
from reallm.plugins import registry
from reallm.seeding import seed_global_generators
from reallm.specs import Algorithm


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run."""

    run_dir: Path
    checkpoint: Path | None
    """The newest checkpoint; None if the run was stopped before its first step."""
    steps: int
    interrupted: bool
    metrics: Mapping[str, float]
    """The last value of each metric."""


def run(
    config: TrainingConfig,
    algorithm: Algorithm | str,
    *,
    name: str | None = None,
    console: Console | None = None,
    job: Job | None = None,
) -> RunResult:
    """Train, evaluate, log and save as `config` says, executing the graph of `algorithm` once a step.

    The contents of the run folder are listed in docs/training.md. Ctrl-C or SIGTERM ends the run after the step in
    progress, and saves; `config.resume` continues from the last save, however the run ended.

    In a job of many processes, started by torchrun or srun, all of them call it and get the same result. Only rank 0
    prints and writes into the run folder, except for the checkpoints, which the ranks write together.

    Args:
        config: an instance of the algorithm's configuration class, such as `SFTConfig`.
        algorithm: its name, such as `"sft"`, or its graph and interfaces.
        name: name of the algorithm's command, for the folder's name and for hints such as `reallm sft resume=...`;
            None: the name under which an installed plugin offers `algorithm`, if one does.
        console: console on which progress is printed; None is the standard output.
        job: the processes that train together; None: the processes that were started with this one, if any.

    Raises:
        ReallmError: the configuration, the data or the checkpoint is wrong, or training cannot continue; says why in
            one line.
    """
    if not isinstance(config, TrainingConfig):
        raise ConfigError(f"config must be a configuration such as SFTConfig(...), not {kind_of(config)}")
    if isinstance(algorithm, str):
        name, algorithm = name or algorithm, registry.get("algorithm", algorithm)
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(f"algorithm must be a name such as 'sft', or an Algorithm, not {kind_of(algorithm)}")
    seed_global_generators(config.seed)  # a plugin may draw from them; a resumed run gets its states back later
    job = _connect(config) if job is None else job
    console = (console or Console()) if job.is_rank0 else Console(quiet=True, force_terminal=False)
    name = _name_of(algorithm) if name is None else name
    graph = Graph.of(algorithm, config)
    check_names(config, algorithm, graph, job)
    settings = plain(describe(config).tree())
    with distributed_context(config, settings, graph, job), ExitStack() as stack:
        lengths = partial(prompt_lengths, config, algorithm, graph)
        config = with_allocation(config, graph, job, partial(print_line, console), lengths)
        settings = plain(describe(config).tree())
        opened = open_run(job, config, settings, name, stack)
        if opened.is_finished:
            earlier = read_run(opened.folder.path)
            print_line(console, complete_line(earlier))
            return RunResult(earlier.path, earlier.checkpoint, earlier.steps, False, earlier.metrics)
        try:
            trainer = Trainer.build(config, algorithm, graph, opened, job, console)
        except BaseException:
            if job.is_rank0 and not opened.is_resume:
                opened.folder.remove_if_empty()
            raise
        result = _train(trainer)
    if config.push_to_hub is not None and job.is_rank0 and not result.interrupted:
        _push(result.run_dir, config.push_to_hub, console)
    return result


def _push(run_dir: Path, repo: str, console: Console) -> None:
    """Upload the run; a failure is printed, since the run itself is done."""
    try:
        print_line(console, f"pushed to {push_run(run_dir, repo)}")
    except ReallmError as error:
        print_line(console, str(error))


def _connect(config: TrainingConfig) -> Job:
    """The job that this process was started for, or a single process."""
    rank_env = RankEnv.from_environment(os.environ)
    return Job() if rank_env is None else Job.connect(rank_env, config.parallel.timeout)


def _name_of(algorithm: Algorithm) -> str | None:
    """The name under which an installed plugin offers an algorithm."""
    return next((name for name, offered in registry.offers("algorithm").items() if offered is algorithm), None)


def _train(trainer: Trainer) -> RunResult:
    """Train, and write and print the outcome."""
    opened, job, echo = trainer.run, trainer.job, trainer.progress.echo
    folder = opened.folder
    trainer.write_summary("running")
    # Signals are handled until the outcome is written: torchrun sends SIGTERM to the peers of a dead process.
    with stop_requests(announce=job.is_rank0) as stop:
        try:
            with trainer.progress:
                trainer.train(stop if job.is_alone else SynchronizedStop(stop, job))
        except BaseException as error:
            is_stop = isinstance(error, KeyboardInterrupt)
            trainer.write_summary("stopped" if is_stop else "failed", None if is_stop else _reason(error))
            if job.is_rank0:
                write_page(folder, echo)
            # if a process died, whoever reports it prints the command as well
            if isinstance(error, ReallmError) and not is_peer_error(error) and trainer.newest is not None:
                echo(f"the last save is {trainer.newest}; to resume: {opened.resume_command}")
            raise
        finally:
            trainer.loggers.close()
        trainer.write_summary("done" if trainer.is_done else "stopped")
        job.broadcast_from_rank0(lambda: _write_reports(folder, echo), trainer.config.parallel.timeout)
    lines = final_lines(
        opened,
        is_done=trainer.is_done,
        steps=trainer.step,
        seconds=trainer.seconds,
        checkpoint=trainer.newest,
        best=trainer.best.best,
        stop_reason=trainer.stop_reason,
        question=trainer.question,
    )
    for line in lines:
        echo(line)
    return RunResult(folder.path, trainer.newest, trainer.step, not trainer.is_done, trainer.metrics)


def _write_reports(folder: RunFolder, echo: Callable[[str], None]) -> None:
    write_page(folder, echo)
    write_plot(folder, echo)


def _reason(error: BaseException) -> str:
    if is_peer_error(error) and not isinstance(error, ReallmError):
        return "another process of the job has ended, or did not answer"
    return one_line(error)
