"""`evaluate_tasks`: a model on tasks of the LM Evaluation Harness."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.config.load import describe
from reallm.errors import ConfigError, quoted
from reallm.experiments.evaluation.evaluate import load_models
from reallm.experiments.evaluation.harness_options import TaskOptions, check_harness
from reallm.experiments.preflight.memory import explained_shortage
from reallm.experiments.preflight.models import with_base_models
from reallm.experiments.run.progress import print_line
from reallm.experiments.run.setup import distributed_context, load_run_tokenizer
from reallm.experiments.runs.settings import plain
from reallm.launch.job import Job
from reallm.specs import Algorithm


@dataclass(frozen=True)
class TaskResult:
    """A metric of a task."""

    task: str
    metric: str
    filter: str
    """Name of the task's filter of answers that the metric is computed after; `none` for the answers themselves."""
    value: float
    stderr: float | None
    n_shot: int | None


def check_tasks(options: TaskOptions) -> Any:
    """The harness's task manager, if it knows all tasks.

    Raises:
        ConfigError: it does not; gives the nearest names.
    """
    check_harness()
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise ConfigError(f"--include-path {options.include_path}: there is no such folder")

    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=options.include_path)
    for task in options.tasks:
        is_file = task.endswith((".yaml", ".yml"))
        if (is_file and not Path(task).is_file()) or (not is_file and not manager.match_tasks([task])):
            raise ConfigError(_unknown(task, [] if is_file else manager.all_tasks))
    return manager


def evaluate_tasks(
    config: Any, algorithm: Algorithm, options: TaskOptions, *, console: Console | None = None, job: Job | None = None
) -> list[TaskResult]:
    """Compute the metrics of tasks for the first model that an algorithm trains.

    In a job of many processes all of them call it; only rank 0 gets results.

    Args:
        config: an instance of the algorithm's configuration, or of one without a dataset; see `evaluation_class`.
        algorithm: graph and interfaces, such as `registry.get("algorithm", "sft")`.
        options: tasks and options of the harness.
        console: console on which progress is printed; None is the standard output.
        job: the processes that evaluate together; None: this process alone.

    Raises:
        ReallmError: a task is not known, or a setting or the checkpoint is wrong; says why in one line.
    """
    job = job or Job()
    console = (console or Console()) if job.is_rank0 else Console(quiet=True, force_terminal=False)
    manager = check_tasks(options)
    graph = Graph.of(algorithm, config)
    config = with_base_models(config, graph.roles)
    role = graph.trained_roles[0]
    with distributed_context(config, plain(describe(config).tree()), graph, job):
        tokenizer, _ = load_run_tokenizer(config, graph)
        if options.apply_chat_template and not tokenizer.chat_template:
            raise ConfigError("--apply-chat-template: the tokenizer has no chat template; leave it out")
        placement = Placement.of(config, graph, job.size)
        roles = load_models(config, graph, placement, [role], tokenizer, job, lambda line: print_line(console, line))

        from lm_eval import simple_evaluate

        from reallm.experiments.evaluation.harness_model import HarnessModel

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        model = HarnessModel(roles[role].model, tokenizer, config.max_tokens_per_microbatch, console)
        with explained_shortage("evaluation", roles, config):
            found = simple_evaluate(
                model,
                tasks=list(options.tasks),
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=options.apply_chat_template,
                log_samples=False,
                task_manager=manager,
            )
        return [] if found is None else task_results(found)


def task_results(found: Mapping[str, Any]) -> list[TaskResult]:
    """The metrics in what the harness returns, in its order."""
    results = []
    for task, metrics in found["results"].items():
        n_shot = found.get("n-shot", {}).get(task)
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            known = float(stderr) if isinstance(stderr, int | float) else None
            results.append(TaskResult(task, metric, filter_name, float(value), known, n_shot))
    return results


def _unknown(task: str, names: Iterable[str]) -> str:
    near: Sequence[str] = difflib.get_close_matches(task, list(names), n=3, cutoff=0.5)
    hint = f"; did you mean {quoted(near)}?" if near else "; --include-path DIR adds tasks of your own"
    return f"--lm-eval {task}: the harness has no such task{hint}"
