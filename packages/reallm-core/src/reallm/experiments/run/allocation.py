"""Puts the plan that `allocation=` asks for into the configuration of a run, as if its keys had been typed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from reallm.algorithms.graph import Graph
from reallm.config.allocation import MANUAL
from reallm.config.args import CallArgs
from reallm.config.load import describe
from reallm.config.training import AUTO, TrainingConfig, call_args_of
from reallm.errors import ConfigError, counted
from reallm.experiments.checkpointing.open_run import earlier_run
from reallm.experiments.run.planned_job import planned_job
from reallm.experiments.runs.settings import n_processes_of, plain, read_settings
from reallm.launch.job import Job
from reallm.parallel.layout import Layout


def with_allocation(
    config: TrainingConfig,
    graph: Graph,
    job: Job,
    echo: Callable[[str], None],
    prompt_lengths: Callable[[], Sequence[int]],
) -> TrainingConfig:
    """The configuration with the plan that `allocation` says in the keys of its calls; the same on all ranks.

    Rank 0 plans, for what `plan.*` says, and sends the plan to the others. A run that is resumed has the
    layouts that were chosen when it began, unless it is asked for another plan, or with `resume=auto` has another
    number of processes.

    Args:
        config: the configuration.
        graph: its graph.
        job: the processes.
        echo: prints a line.
        prompt_lengths: finds the tokens of the prompts of some steps; called if `plan.prompt_lens` is not given.

    Raises:
        ConfigError: no plan fits into memory, a layout is not possible, the plan of a resumed run takes more processes
            than there are, or a key of `plan.*` is wrong.
    """
    args = call_args_of(config)
    if config.allocation == MANUAL:
        return config
    if all(name in args and args[name].layout is not None for name in _calls_of_models(graph)):
        if config.resume is not None:
            _check_processes(config, job, echo)
        return config
    if job.store is None:  # alone, or a dry run
        chosen = _choose(config, graph, job, prompt_lengths)
    else:
        timeout = config.parallel.timeout
        chosen = job.broadcast_from_rank0(lambda: _choose(config, graph, job, prompt_lengths), timeout)
    for line in chosen["lines"]:
        echo(line)
    changes: dict[str, Any] = {
        name: dataclasses.replace(args[name], **values) for name, values in chosen["calls"].items() if name in args
    }
    if chosen["parallel"]:
        changes["parallel"] = dataclasses.replace(config.parallel, **chosen["parallel"])
    return dataclasses.replace(config, **changes)


def _check_processes(config: TrainingConfig, job: Job, echo: Callable[[str], None]) -> None:
    """Check that a resumed run has the processes that its plan takes; say so if it has more."""
    layouts = [Layout.parse(args.layout) for args in call_args_of(config).values() if args.layout is not None]
    needed = max(max(layout.ranks) + 1 for layout in layouts)
    anew = f"add allocation={config.allocation} to plan anew for {job.size}"
    if needed > job.size:
        raise ConfigError(
            f"the execution plan of this run takes {counted(needed, 'process', 'processes')}, but {job.size} "
            f"{'was' if job.size == 1 else 'were'} started; start as many (torchrun --nproc-per-node), or {anew}"
        )
    if needed < job.size:
        echo(f"note: the execution plan of this run takes {needed} of {job.size} processes; {anew}")


def _kept(config: TrainingConfig, graph: Graph, job: Job) -> dict[str, Any] | None:
    """The plan of the run that is resumed, as `_choose` gives it; None if it is to be planned anew."""
    from reallm.planning.allocation import has_calls_without_keys

    folder = earlier_run(config, plain(describe(config).tree()))
    if folder is None:
        return None
    earlier = read_settings(folder.config)
    if earlier.get("allocation") != config.allocation or n_processes_of(folder) != job.size:
        return None
    if has_calls_without_keys(config, graph):
        # the settings of a run that is named are the configuration already, perhaps with other sizes
        sizes = earlier["parallel"] if config.resume == AUTO else dataclasses.asdict(config.parallel)
        return {"lines": [], "calls": {}, "parallel": {axis: sizes[axis] for axis in ("dp", "pp", "tp")}}
    if config.resume != AUTO:  # its layouts are gone, since `allocation` is given again
        return None
    before = {name: earlier.get(name) or {} for name in call_args_of(config)}
    if any(before[name].get("layout") is None for name in _calls_of_models(graph)):
        return None
    given = {name for name, args in call_args_of(config).items() if args.layout is not None}
    return {"lines": [], "calls": {name: before[name] for name in before.keys() - given}, "parallel": {}}


def _calls_of_models(graph: Graph) -> list[str]:
    return [call.name for call in graph.calls if call.kind != "reward"]


def _choose(
    config: TrainingConfig, graph: Graph, job: Job, prompt_lengths: Callable[[], Sequence[int]]
) -> dict[str, Any]:
    """The plan, as values of JSON: the keys of calls, and those of `parallel.*`; and the lines that tell it."""
    if (kept := _kept(config, graph, job)) is not None:
        return kept
    from reallm.planning.allocation import has_calls_without_keys, planned

    work, planned_for = planned_job(config, graph, job, prompt_lengths)
    found = planned(config, work)
    plan, args = found.plan, call_args_of(config)
    calls: dict[str, dict[str, Any]] = {}
    parallel: dict[str, int] = {}
    if has_calls_without_keys(config, graph):
        layout = plan.calls[graph.train_calls[0].name].layout
        parallel = {"dp": layout.dp, "pp": layout.pp, "tp": layout.tp}
        keys = [f"parallel.{key}={n}" for key, n in parallel.items()]
    else:
        for name, one in plan.calls.items():
            given = args.get(name, CallArgs())
            calls[name] = {
                "layout": plan.layout_text(graph, name),
                "offload": one.offload or given.offload,
                "prefetch": one.prefetch or given.prefetch,
                "max_tokens_per_microbatch": one.max_tokens,
            }
        keys = plan.assignments(graph)
    lines = [f"allocation={config.allocation}: {' '.join(keys)}"]
    if found.search is not None:
        gain = found.search.gain
        beside = "heuristic does not fit into memory" if gain is None else f"{gain:.2f} times as fast as heuristic"
        lines.append(f"planned for {planned_for}: {beside}; reallm plan shows more")
    return {"lines": lines, "calls": calls, "parallel": parallel}
