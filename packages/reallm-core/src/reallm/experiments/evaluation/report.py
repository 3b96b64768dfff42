"""Results of evaluations as tables for people and as JSON types for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.table import Table

from reallm.config.evaluation import evaluation_settings
from reallm.experiments.evaluation.evaluate import EvalResult
from reallm.experiments.evaluation.harness import TaskResult
from reallm.experiments.evaluation.harness_options import TaskOptions
from reallm.experiments.reports.number_format import number
from reallm.loggers.jsonl import finite


def metrics_table(result: EvalResult) -> Table:
    """Name and value of each metric."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value in result.metrics.items():
        is_count = "_tokens" in name and math.isfinite(value)
        table.add_row(name, number(int(value) if is_count else value))
    return table


def tasks_table(results: Sequence[TaskResult]) -> Table:
    """A line for each metric of each task."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("Task", "Metric", "Filter", "Value", "Stderr", "Few-shot"):
        table.add_column(title)
    for one in results:
        stderr = "" if one.stderr is None else number(one.stderr)
        n_shot = "" if one.n_shot is None else str(one.n_shot)
        table.add_row(one.task, one.metric, one.filter, number(one.value), stderr, n_shot)
    return table


def result_as_json(config: Any, algorithm: str, result: EvalResult) -> dict[str, Any]:
    """Metrics, with None for one that is not finite, and what they were computed from. Keys are only ever added."""
    return {
        "algorithm": algorithm,
        "metrics": finite(result.metrics),
        "n_samples": result.n_samples,
        "seconds": round(result.seconds, 3),
        **_origin(config),
    }


def tasks_as_json(config: Any, algorithm: str, options: TaskOptions, results: Sequence[TaskResult]) -> dict[str, Any]:
    """Metrics of tasks, and what they were computed from. Keys are only ever added."""
    rows = [asdict(one) for one in results]
    for row in rows:
        row |= finite({key: row[key] for key in ("value", "stderr") if row[key] is not None})
    return {
        "algorithm": algorithm,
        "results": rows,
        "harness": {**asdict(options), "version": version("lm-eval")},
        **_origin(config),
    }


def _origin(config: Any) -> dict[str, Any]:
    return {"settings": evaluation_settings(config), "reallm-core": version("reallm-core")}
