"""The command of an algorithm, such as `reallm sft`: configuration from files and `key=value`, checks, run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reallm.cli.spawn import launch, run_worker
from reallm.launch.rank_env import RankEnv
from reallm.plugins import registry

if TYPE_CHECKING:
    from reallm.config.load import Configuration
    from reallm.launch.job import Job

BUILT_IN = {"sft": "Fine-tune a model on prompt/answer pairs or conversations."}
"""Short descriptions for `reallm --help`, which imports no plugin to ask for them."""


def algorithm_command(name: str) -> Any:
    """The command that runs the algorithm `name`. The algorithm is looked up when the command is run, not before."""

    def command(
        arguments: Annotated[list[str] | None, typer.Argument(metavar="key=value")] = None,
        config: Annotated[list[Path] | None, typer.Option("--config")] = None,
        print_config: Annotated[bool, typer.Option("--print-config")] = False,
        show_help: Annotated[bool, typer.Option("--help", "-h")] = False,
    ) -> None:
        if show_help:
            from reallm.cli.help import help_text

            typer.echo(help_text(name, registry.get("algorithm", name), arguments or [], config or []))
        else:
            _run(name, config or [], arguments or [], print_config)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(
        name,
        help=BUILT_IN.get(name, f"An algorithm of an installed plugin; see reallm {name} --help."),
        add_help_option=False,  # ours knows the keys, and those of the dataset that was named
        context_settings={"ignore_unknown_options": True},  # `--lr 1e-4` reaches us, who can say what to write
    )(command)
    return typer.main.get_command(app)


def _run(name: str, files: list[Path], arguments: list[str], print_config: bool) -> None:
    if print_config:
        typer.echo(_configuration(name, files, arguments).to_yaml(), nl=False)
        return
    started = RankEnv.from_environment(os.environ)
    if started is not None:
        run_worker(name, started, lambda job: _train(name, _checked(name, files, arguments), job))
    config = _checked(name, files, arguments)
    n = config.parallel.n_processes if hasattr(config, "parallel") else 1
    if n > 1:
        raise typer.Exit(launch([name, *(f"--config={file}" for file in files), *arguments], n))
    if _train(name, config, None):
        raise typer.Exit(130)


def _configuration(name: str, files: list[Path], arguments: list[str]) -> Configuration:
    from reallm.config.load import load

    own_files, own_arguments = _of_resumed_run(arguments)
    config_class = registry.get("algorithm", name).config_class()
    return load(config_class, [*own_files, *files], [*own_arguments, *arguments])


def _checked(name: str, files: list[Path], arguments: list[str]) -> Any:
    from reallm.experiments.preflight.checks import check

    config = _configuration(name, files, arguments).build()
    check(config)
    return config


def _train(name: str, config: Any, job: Job | None) -> bool:
    """Whether the user has ended the run."""
    from reallm.experiments.run.runner import run

    return run(config, registry.get("algorithm", name), job=job).interrupted


def _of_resumed_run(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The settings that come first where `resume=<run folder>` is given: those of the run, and where it is."""
    from reallm.experiments.checkpointing.resume import AUTO, named_run, resume_arguments

    wanted = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not wanted or wanted[-1] in (AUTO, "null", ""):
        return [], []
    return resume_arguments(named_run(Path(wanted[-1])))
