"""`reallm eval`: metrics of a checkpoint on rows, or on tasks of the LM Evaluation Harness."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reallm.cli.spawn import launch, run_worker
from reallm.errors import ConfigError
from reallm.launch.rank_env import RankEnv
from reallm.plugins import registry

if TYPE_CHECKING:
    from rich.console import Console

    from reallm.launch.job import Job

STDOUT = "-"
"""The value of `--json` that prints to standard output."""


def evaluate(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Keys as in training, such as model.path.")
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", metavar="FILE", help="Read keys from a YAML file; repeatable.")
    ] = None,
    algorithm: Annotated[str, typer.Option(metavar="NAME", help="Algorithm whose metrics are computed.")] = "sft",
    as_json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; -: to standard output.")
    ] = None,
    show_help: Annotated[bool, typer.Option("--help", "-h", help="Show this page, with all keys.")] = False,
) -> None:
    """Compute loss, perplexity and accuracy of a checkpoint on rows, as training does.

    \b
      reallm eval model.path=PATH dataset.path=rows.jsonl
      reallm eval model.path=runs/my-run dataset.path=rows.jsonl --json result.json
    """
    given = arguments or []
    files = config or []
    if show_help:
        typer.echo(_help(algorithm, given, files))
        return
    if as_json not in (None, STDOUT) and not Path(as_json).absolute().parent.is_dir():
        raise ConfigError(f"--json {as_json}: there is no folder {Path(as_json).parent}")
    rank_env = RankEnv.from_environment(os.environ)
    if rank_env is not None:
        run_worker("eval", rank_env, lambda job: _evaluate(algorithm, files, given, as_json, job))
    n = _load_and_check(algorithm, files, given).parallel.n_processes
    if n > 1:
        options = [f"--algorithm={algorithm}", *([] if as_json is None else [f"--json={as_json}"])]
        raise typer.Exit(launch(["eval", *options, *(f"--config={file}" for file in files), *given], n))
    _evaluate(algorithm, files, given, as_json, None)


def _load_and_check(algorithm: str, files: list[Path], arguments: list[str]) -> Any:
    from reallm.config.evaluation import keys_as_written, load_evaluation
    from reallm.experiments.preflight.checks import check

    config_class = registry.get("algorithm", algorithm).config_class()
    with keys_as_written(config_class, files, arguments):
        config = load_evaluation(config_class, files, arguments)
        check(config)
    return config


def _evaluate(algorithm: str, files: list[Path], arguments: list[str], as_json: str | None, job: Job | None) -> bool:
    """Evaluate and show the result; returns that nobody has interrupted it."""
    config = _load_and_check(algorithm, files, arguments)

    from rich.console import Console

    from reallm.experiments.evaluation.evaluate import evaluate

    console = Console(stderr=as_json == STDOUT)
    result = evaluate(config, registry.get("algorithm", algorithm), console=console, job=job)
    if job is None or job.is_rank0:
        _show(result.metrics, console)
        if as_json is not None:
            from reallm.experiments.evaluation.report import as_dict

            _write_json(as_dict(config, algorithm, result), as_json)
    return False


def _show(metrics: Mapping[str, float], console: Console) -> None:
    """A table of metrics: name and value."""
    from rich.table import Table

    from reallm.experiments.reports.number_format import number

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value in metrics.items():
        whole = math.isfinite(value) and value == int(value) and name.endswith("_tokens")
        table.add_row(name, number(int(value) if whole else value))
    console.print(table)


def _write_json(content: Mapping[str, Any], target: str) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
        return
    from reallm.atomic_files import atomic_write

    with atomic_write(Path(target)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _help(algorithm: str, arguments: list[str], files: list[Path]) -> str:
    from reallm.cli.help import evaluation_help

    return evaluation_help(algorithm, registry.get("algorithm", algorithm), arguments, files)
