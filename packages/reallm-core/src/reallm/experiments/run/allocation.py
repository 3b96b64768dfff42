"""Puts the plan that `allocation=` asks for into the configuration of a run, as if its keys had been typed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reallm.algorithms.graph import Graph
from reallm.config.allocation import MANUAL
from reallm.config.training import TrainingConfig, call_args_of, model_args
from reallm.experiments.preflight.models import planned_model
from reallm.launch.job import Job

if TYPE_CHECKING:
    from reallm.planning.job import PlannedJob


def with_allocation(config: TrainingConfig, graph: Graph, job: Job, echo: Callable[[str], None]) -> TrainingConfig:
    """The configuration with a layout for each call, as `allocation` says; the same on all ranks.

    Rank 0 plans, for the machine that it runs on, and sends the plan to the others. A run that is resumed has the
    layouts that were chosen when it began.

    Args:
        config: the configuration.
        graph: its graph.
        job: the processes.
        echo: prints a line.

    Raises:
        ConfigError: no plan fits into memory, or a layout is not possible.
    """
    args = call_args_of(config)
    is_chosen = all(name in args and args[name].layout is not None for name in _calls_of_models(graph))
    if config.allocation == MANUAL or is_chosen:
        return config
    if job.store is None:  # alone, or a dry run
        chosen = _choose(config, graph, job)
    else:
        chosen = job.broadcast_from_rank0(lambda: _choose(config, graph, job), config.parallel.timeout)
    for line in chosen["lines"]:
        echo(line)
    changes: dict[str, Any] = {
        name: dataclasses.replace(args[name], **values) for name, values in chosen["calls"].items() if name in args
    }
    if chosen["parallel"]:
        changes["parallel"] = dataclasses.replace(config.parallel, **chosen["parallel"])
    return dataclasses.replace(config, **changes)


def _calls_of_models(graph: Graph) -> list[str]:
    return [call.name for call in graph.calls if call.kind != "reward"]


def _choose(config: TrainingConfig, graph: Graph, job: Job) -> dict[str, Any]:
    """The plan, as values of JSON: the keys of calls, and those of `parallel.*`; and the lines that tell it."""
    from reallm.planning.allocation import has_calls_without_keys, planned

    planned_job = _planned_job(config, graph, job)
    found = planned(config, planned_job)
    plan = found.plan
    lines = [f"allocation={config.allocation}: {' '.join(plan.assignments(graph))}"]
    parallel: dict[str, int] = {}
    if has_calls_without_keys(config, graph):
        layout = plan.calls[graph.train_calls[0].name].layout
        parallel = {"dp": layout.dp, "pp": layout.pp, "tp": layout.tp}
        lines = [f"allocation={config.allocation}: " + " ".join(f"parallel.{key}={n}" for key, n in parallel.items())]
    if found.search is not None:
        workload, gain = planned_job.workload, found.search.gain
        beside = "heuristic does not fit into memory" if gain is None else f"{gain:.2f} times as fast as heuristic"
        lines.append(
            f"planned for prompts of {workload.prompts.mean:,.0f} tokens and answers of "
            f"{workload.answers.mean:,.0f}: {beside}; reallm plan shows more"
        )
    args = call_args_of(config)
    return {
        "lines": lines,
        "calls": {
            call.name: {
                "layout": plan.layout_text(graph, call.name),
                "offload": plan.calls[call.name].offload or (call.name in args and args[call.name].offload),
            }
            for call in graph.calls
            if not parallel
        },
        "parallel": parallel,
    }


def _planned_job(config: TrainingConfig, graph: Graph, job: Job) -> PlannedJob:
    from reallm.planning.configured_workload import configured_workload
    from reallm.planning.job import PlannedJob
    from reallm.planning.known_machines import with_ranks
    from reallm.planning.this_machine import this_machine

    machine = this_machine(job.local_size)
    models = {role: planned_model(model_args(config, role), None) for role in graph.roles}
    workload = configured_workload(config, graph).workload
    return PlannedJob.of(config, graph, models, with_ranks(machine, job.size), workload)
