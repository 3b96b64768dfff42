"""`reallm eval`: metrics of a checkpoint on rows, or on tasks of the LM Evaluation Harness."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reallm.cli.spawn import launch, run_worker
from reallm.cli.trust import TrustCode, with_trust
from reallm.errors import ConfigError
from reallm.launch.rank_env import RankEnv
from reallm.plugins import registry
from reallm.printable import json_text

if TYPE_CHECKING:
    from reallm.experiments.evaluation.harness_options import TaskOptions
    from reallm.launch.job import Job

STDOUT = "-"
"""The value of `--json` that prints to standard output."""


@dataclass(frozen=True)
class Request:
    """The command line of an evaluation."""

    algorithm: str
    files: Sequence[Path]
    arguments: Sequence[str]
    json_file: str | None
    tasks: TaskOptions | None
    """Tasks of the harness to evaluate on; None: rows."""

    @property
    def config_class(self) -> type:
        """The configuration of the algorithm."""
        found: type = registry.get("algorithm", self.algorithm).config_class()
        return found


def evaluate(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="key=value")] = None,
    config: Annotated[list[Path] | None, typer.Option("--config")] = None,
    trust_code: TrustCode = False,
    algorithm: Annotated[str, typer.Option("--algorithm")] = "sft",
    json_file: Annotated[str | None, typer.Option("--json")] = None,
    lm_eval: Annotated[str | None, typer.Option("--lm-eval")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num-fewshot", min=0)] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1)] = None,
    include_path: Annotated[str | None, typer.Option("--include-path")] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template")] = False,
    show_help: Annotated[bool, typer.Option("--help", "-h")] = False,
) -> None:
    """Compute loss, perplexity and accuracy of a checkpoint on rows."""
    from reallm.notices import silenced_notices  # imports logging

    given, files = with_trust(arguments, trust_code), config or []
    if show_help:
        from reallm.cli.help import evaluation_help

        typer.echo(evaluation_help(algorithm, registry.get("algorithm", algorithm), given, files))
        return
    if json_file not in (None, STDOUT) and not Path(json_file).absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {Path(json_file).parent}")
    options = {"--num-fewshot": num_fewshot, "--limit": limit, "--include-path": include_path,
               "--apply-chat-template": apply_chat_template or None}  # fmt: skip
    tasks = _task_options(lm_eval, options)
    request = Request(algorithm, files, given, json_file, tasks)
    rank_env = RankEnv.from_environment(os.environ)
    if rank_env is not None:
        run_worker("eval", rank_env, lambda job: _evaluate(request, _load_and_check(request), job))
    loaded = _load(request)
    n = loaded.parallel.n_processes if request.tasks else loaded.n_processes
    with silenced_notices() if n > 1 else nullcontext():  # rank 0 shows them
        _check(request, loaded)
    if n > 1:
        named = {"--algorithm": algorithm, "--json": json_file, "--lm-eval": lm_eval, **options}
        written = [name if value is True else f"{name}={value}" for name, value in named.items() if value is not None]
        raise typer.Exit(launch(["eval", *written, *(f"--config={file}" for file in files), *given], n))
    _evaluate(request, loaded, None)


def _task_options(tasks: str | None, options: Mapping[str, Any]) -> TaskOptions | None:
    """The options of the harness; None without tasks."""
    if tasks is None:
        for name, value in options.items():
            if value is not None:
                raise ConfigError(f"{name} is an option of the harness; name its tasks, --lm-eval TASKS")
        return None

    from reallm.experiments.evaluation.harness_options import TaskOptions, check_harness

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise ConfigError("--lm-eval names no task")
    check_harness()
    return TaskOptions(
        names,
        options["--num-fewshot"],
        options["--limit"],
        options["--include-path"],
        bool(options["--apply-chat-template"]),
    )


def _load(request: Request) -> Any:
    from reallm.config.evaluation import keys_as_written, load_evaluation, load_without_rows

    config_class, files, arguments = request.config_class, request.files, request.arguments
    if request.tasks is not None:
        return load_without_rows(config_class, files, arguments)
    with keys_as_written(config_class, files, arguments):
        return load_evaluation(config_class, files, arguments)


def _check(request: Request, config: Any) -> None:
    from reallm.algorithms.graph import Graph
    from reallm.config.evaluation import keys_as_written
    from reallm.experiments.preflight.checks import check

    graph = Graph.of(registry.get("algorithm", request.algorithm), config)
    with keys_as_written(request.config_class, request.files, request.arguments):
        check(config, graph, training=False)


def _load_and_check(request: Request) -> Any:
    config = _load(request)
    _check(request, config)
    return config


def _evaluate(request: Request, config: Any, job: Job | None) -> bool:
    """Evaluate and show the result; returns that nobody has interrupted it."""
    from rich.console import Console

    from reallm.experiments.evaluation.evaluate import evaluate
    from reallm.experiments.evaluation.report import metrics_table, result_as_json, tasks_as_json, tasks_table

    console = Console(stderr=request.json_file == STDOUT)
    algorithm = registry.get("algorithm", request.algorithm)
    if request.tasks is None:
        result = evaluate(config, algorithm, console=console, job=job)
        table, content = metrics_table(result), result_as_json(config, request.algorithm, result)
    else:
        from reallm.experiments.evaluation.harness import evaluate_tasks

        results = evaluate_tasks(config, algorithm, request.tasks, console=console, job=job)
        table, content = tasks_table(results), tasks_as_json(config, request.algorithm, request.tasks, results)
    if job is None or job.is_rank0:
        console.print(table)
        if request.json_file is not None:
            _write_json(content, request.json_file)
    return False


def _write_json(content: Mapping[str, Any], target: str) -> None:
    text = json_text(content, indent=2) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
        return
    from reallm.atomic_files import atomic_write

    with atomic_write(Path(target)) as temporary:
        temporary.write_text(text, encoding="utf-8")
