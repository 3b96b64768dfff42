"""`planned`: the execution plan that the key `allocation` of a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement, given_layouts
from reallm.config.allocation import HEURISTIC, MANUAL, layout_of
from reallm.config.training import TrainingConfig, call_args_of
from reallm.errors import ConfigError
from reallm.parallel.layout import Layout
from reallm.planning.candidates import splits
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.heuristic import heuristic, uniform
from reallm.planning.job import PlannedJob
from reallm.planning.misfit import misfit
from reallm.planning.offloading import Fitted, Fitting
from reallm.planning.search import SearchResult, search


@dataclass(frozen=True)
class Planned:
    """A plan, and how it was found."""

    plan: ExecutionPlan
    search: SearchResult | None = None
    """None: it was not searched, but given or that of `heuristic`."""


def planned(config: TrainingConfig, job: PlannedJob) -> Planned:
    """The plan of a run. Calls with a layout of their own keep it, and the others are planned around them.

    So do calls with a limit on the tokens of their micro-batches. A pure function: the same arguments give the same
    plan.

    Args:
        config: the configuration.
        job: what it is planned for.

    Raises:
        ConfigError: a layout is not possible, or no plan fits into memory; names the rank, the call and what takes the
            most.
    """
    found, limits = _planned(config, job), job.settings.max_tokens
    calls = {name: replace(one, max_tokens=limits.get(name, one.max_tokens)) for name, one in found.plan.calls.items()}
    return replace(found, plan=ExecutionPlan(calls))


def _planned(config: TrainingConfig, job: PlannedJob) -> Planned:
    """The plan, without the limits that calls are given."""
    graph, n_ranks = job.graph, job.machine.n_ranks
    if config.allocation == MANUAL:
        placement = Placement.of(config, graph, n_ranks)
        return Planned(
            ExecutionPlan(
                {
                    name: CallPlan(layout, name in placement.offloaded, prefetch=name in placement.prefetched)
                    for name, layout in placement.layouts.items()
                }
            )
        )
    given = given_plans(config, graph)
    one_for_all = layout_of(config.allocation)
    if one_for_all is not None:
        for name in (call.name for call in graph.calls if call.kind != "reward" and call.name not in given):
            try:
                job.check_fits(name, one_for_all)
            except ConfigError as error:
                raise ConfigError(f"allocation={config.allocation}: {error}") from error
        plan = ExecutionPlan({**uniform(graph, one_for_all).calls, **given})
        job.placement(plan)
        return Planned(plan)
    if has_calls_without_keys(config, graph):
        return Planned(_one_layout(job, given))
    if config.allocation == HEURISTIC:
        return Planned(_fitting(job, heuristic(job.simulator, given, job.check_fits)))
    found = search(job.simulator, given=given, fits=job.check_fits, seed=config.seed)
    job.placement(found.plan)  # what is given may not go with the layouts around it
    return Planned(found.plan, found)


def given_plans(config: TrainingConfig, graph: Graph) -> dict[str, CallPlan]:
    """The plans of the calls to which a configuration gives a layout."""
    args, trained = call_args_of(config), {call.name for call in graph.train_calls}
    return {
        name: CallPlan(
            replace(layout, fsdp=True) if name in trained else layout, args[name].offload, prefetch=args[name].prefetch
        )
        for name, layout in given_layouts(config, graph).items()
    }


def has_calls_without_keys(config: TrainingConfig, graph: Graph) -> bool:
    """Whether the configuration has no field for the layout of some call, which then has that of `parallel.*`."""
    keys = call_args_of(config)
    return any(call.kind != "reward" and call.name not in keys for call in graph.calls)


def _one_layout(job: PlannedJob, given: Mapping[str, CallPlan]) -> ExecutionPlan:
    """The fastest plan with one layout for all calls, over all ranks."""
    simulator, machine = job.simulator, job.machine
    fitting, best, refused = Fitting(simulator, range(len(job.graph.calls))), None, None
    for dp, tp, pp in splits(machine.n_ranks, machine.ranks_per_node):
        layout = Layout(dp, pp, tp)
        try:
            for call in job.graph.calls:
                job.check_fits(call.name, layout)
        except ConfigError as error:
            refused = error
            continue
        found = fitting.fitted(simulator.places(ExecutionPlan({**uniform(job.graph, layout).calls, **given})))
        best = found if best is None or found.score < best.score else best
    if best is None:
        assert refused is not None
        raise refused
    return _fitting(job, best)


def _fitting(job: PlannedJob, found: Fitted) -> ExecutionPlan:
    """The plan, unless it does not fit into memory."""
    if found.excess:
        raise ConfigError(f"no such plan fits into memory; of the closest one, {misfit(job.simulator, found)}")
    return found.plan(job.graph)
