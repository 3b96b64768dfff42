"""The command of an algorithm, such as `reallm sft`: load and check the configuration, then run it.

With several processes, this process launches them, or is a launched one; each runs the same command line.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reallm.cli.preview import show_preview
from reallm.cli.spawn import launch, run_worker
from reallm.cli.streams import outliving_readers
from reallm.errors import ConfigError
from reallm.launch.rank_env import RankEnv
from reallm.plugins import registry

if TYPE_CHECKING:
    from reallm.config.load import Configuration
    from reallm.experiments.runs.folder import RunFolder
    from reallm.launch.job import Job

BUILT_IN = {
    "distill": "Train a student on the distributions of a teacher.",
    "dpo": "Train a model on preferences: DPO and its kin.",
    "grpo": "Train a policy on its own answers by rewards: GRPO and its kin.",
    "ppo": "Train a policy on its own answers by rewards, with a critic.",
    "rw": "Train a reward model on preferences.",
    "sft": "Fine-tune a model on prompt/answer pairs or conversations.",
}
"""Descriptions for `reallm --help`, which imports no plugin."""


def algorithm_command(name: str) -> Any:
    """The command that runs the algorithm `name`, which is looked up only when the command is run."""

    def command(
        arguments: Annotated[list[str] | None, typer.Argument(metavar="key=value")] = None,
        config: Annotated[list[Path] | None, typer.Option("--config")] = None,
        print_config: Annotated[bool, typer.Option("--print-config")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
        preview: Annotated[str | None, typer.Option("--preview")] = None,
        show_help: Annotated[bool, typer.Option("--help", "-h")] = False,
    ) -> None:
        if show_help:
            from reallm.cli.help import help_text

            typer.echo(help_text(name, registry.get("algorithm", name), arguments or [], config or []))
        elif print_config:
            typer.echo(load_configuration(name, config or [], arguments or []).to_yaml(), nl=False)
        elif preview is not None:
            show_preview(name, config or [], arguments or [], _number_of_rows(preview))
        elif dry_run:
            _dry_run(name, config or [], arguments or [])
        else:
            with outliving_readers():
                _run(name, config or [], arguments or [])

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(
        name,
        help=BUILT_IN.get(name, f"An algorithm of an installed plugin; see reallm {name} --help."),
        add_help_option=False,  # our option lists the keys, including those of the chosen dataset
        context_settings={"ignore_unknown_options": True},  # `--lr 1e-4` reaches us, and the error says how to write it
    )(command)
    return typer.main.get_command(app)


def _number_of_rows(text: str) -> int:
    """The value of `--preview`; the error for something else, such as a key, says that the number is missing."""
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"--preview {text}: must be a number of rows, such as --preview 3")
    return int(text)


def _run(name: str, files: list[Path], arguments: list[str]) -> None:
    from reallm.notices import silenced_notices  # imports logging

    rank_env = RankEnv.from_environment(os.environ)
    if rank_env is not None:
        run_worker(name, rank_env, lambda job: _train(name, _load_and_check(name, files, arguments), job))
    config = load_configuration(name, files, arguments).build()
    n = getattr(config, "n_processes", 1)
    with silenced_notices() if n > 1 else nullcontext():  # rank 0 shows them
        _check(name, config)
    if n > 1:
        raise typer.Exit(launch(_command_line(name, files, arguments), n))
    if _train(name, config, None):
        raise typer.Exit(130)


def _dry_run(name: str, files: list[Path], arguments: list[str]) -> None:
    """Print the plan of a run; of a job of several processes, the first one does it alone."""
    rank_env = RankEnv.from_environment(os.environ)
    if rank_env is not None and rank_env.rank > 0:
        return
    config = _load_and_check(name, files, arguments)

    from reallm.experiments.run.dry_run import dry_run
    from reallm.launch.job import Job

    job = None if rank_env is None else Job(size=rank_env.size, local_size=rank_env.local_size)
    if dry_run(config, registry.get("algorithm", name), name=name, job=job):
        command = shlex.join(["reallm", *_command_line(name, files, arguments)])
        typer.echo(f"dry run: everything checks out, and nothing was trained or written; to start: {command}")


def _command_line(name: str, files: list[Path], arguments: list[str]) -> list[str]:
    """The arguments of `reallm` that run the algorithm."""
    return [name, *(f"--config={file}" for file in files), *arguments]


def load_configuration(name: str, files: list[Path], arguments: list[str]) -> Configuration:
    """The configuration of an algorithm; with `resume=<run>`, that of the run with the arguments' changes.

    Raises:
        ReallmError: a key, a value, a file or the run is wrong.
    """
    from reallm.algorithms.owner import made_by_plugin
    from reallm.config.load import load

    algorithm = registry.get("algorithm", name)
    with made_by_plugin(algorithm, "its configuration"):
        config_class = algorithm.config_class()
    run_files, run_arguments = _settings_of_resumed_run(name, config_class, files, arguments)
    return load(config_class, [*run_files, *files], [*run_arguments, *arguments])


def _load_and_check(name: str, files: list[Path], arguments: list[str]) -> Any:
    config = load_configuration(name, files, arguments).build()
    _check(name, config)
    return config


def _check(name: str, config: Any) -> None:
    from reallm.algorithms.graph import Graph
    from reallm.experiments.preflight.checks import check

    check(config, Graph.of(registry.get("algorithm", name), config))


def _train(name: str, config: Any, job: Job | None) -> bool:
    """Run the algorithm; returns whether the user interrupted it."""
    from reallm.experiments.run.runner import run

    return run(config, registry.get("algorithm", name), name=name, job=job).interrupted


def _settings_of_resumed_run(
    name: str, config_class: type, files: list[Path], arguments: list[str]
) -> tuple[list[Path], list[str]]:
    """The files and arguments to load before all others if `resume=<run>` is given; none otherwise."""
    from reallm.config.args import CallArgs
    from reallm.config.load import given
    from reallm.config.parallel import PREFIX
    from reallm.config.training import AUTO, DEFAULT_OUTPUT_DIR, call_fields
    from reallm.field_types import value_text

    values = given(config_class, files, arguments)
    resume = values.get("resume", AUTO)
    if resume == AUTO:
        return [], []
    from reallm.experiments.checkpointing.resume import resume_arguments
    from reallm.experiments.runs.info import read_run
    from reallm.experiments.runs.resumable import find_resumable

    folder = find_resumable(resume, values.get("output_dir", DEFAULT_OUTPUT_DIR))
    algorithm = read_run(folder.path).algorithm
    if algorithm != name and algorithm in registry.names("algorithm"):  # a plugin may have renamed its algorithm
        command = folder.resume_command(algorithm, is_own=False)
        raise ConfigError(f"resume={resume} is a run of {algorithm}, not of {name}; write {command}")
    run_files, run_arguments = resume_arguments(folder)
    if "allocation" in values:  # the plan that the run has had is not kept
        defaults = [f"{key}={value_text(value)}" for key, value in dataclasses.asdict(CallArgs()).items()]
        run_arguments += [f"{call}.{default}" for call in call_fields(config_class) for default in defaults]
        if not any(key.startswith(PREFIX) for key in values) and RankEnv.from_environment(os.environ) is None:
            run_arguments += _processes_of(folder, values["allocation"])
    return run_files, run_arguments


def _processes_of(folder: RunFolder, allocation: str) -> list[str]:
    """Arguments that start a planned run with as many processes again, where `parallel.*` has not said how many."""
    from reallm.config.allocation import HEURISTIC, SEARCH
    from reallm.experiments.runs.settings import n_processes, n_processes_of, read_settings

    n, settings = n_processes_of(folder), read_settings(folder.config)
    if allocation not in (HEURISTIC, SEARCH) or n == n_processes({"parallel": settings["parallel"]}):
        return []
    return [f"parallel.dp={n}", "parallel.pp=1", "parallel.tp=1"]
