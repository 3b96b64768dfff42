"""The plan that a practitioner would choose: all ranks compute every call, each role in one layout.

It is the baseline that ReaL compares its search with: the smallest tensor parallelism within a node, and then the
fewest pipeline stages, with which the plan fits into memory; the rest is data parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reallm.algorithms.graph import Graph
from reallm.errors import ConfigError
from reallm.parallel.layout import Layout
from reallm.planning.candidates import Fits, splits
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.offloading import Fitted, Fitting
from reallm.planning.simulator import Simulator


def heuristic(
    simulator: Simulator,
    given: Mapping[str, CallPlan] | None = None,
    fits: Fits = lambda call, layout: None,
) -> Fitted:
    """The symmetric plan. One that fits into no memory has an `excess`.

    Args:
        simulator: the simulator.
        given: plans of calls that are not to be changed.
        fits: raises an error for layouts that are not possible.

    Raises:
        ConfigError: the model of a role can be split over all ranks in no layout.
    """
    graph, given = simulator.graph, given or {}
    fitting = Fitting(simulator, [number for number, call in enumerate(graph.calls) if call.name in given])
    ladders = {role: _ladder(graph, role, simulator, fits) for role in graph.roles if role not in simulator.bases}
    tried: list[Fitted] = []
    rungs = dict.fromkeys(ladders, 0)
    while True:
        plans = {role: ladders[role][rung] for role, rung in rungs.items()}
        plans |= {role: plans[trained] for role, trained in simulator.bases.items()}  # which costs no memory
        found = fitting.fitted(simulator.places(_plan(graph, plans, given)))
        if not found.excess and not any(one.offload for one in found.places):
            return found
        tried.append(found)
        higher = [role for role in ladders if rungs[role] + 1 < len(ladders[role])]
        if not higher:
            return fitting.with_prefetches(min(tried, key=lambda one: one.excess))
        kept = dict.fromkeys(higher, 0)
        for call, one in zip(graph.calls, found.places, strict=True):
            if call.role in kept:
                kept[call.role] = max(kept[call.role], one.memory.in_call)
        rungs[max(higher, key=lambda role: kept[role])] += 1


def _plan(graph: Graph, layouts: Mapping[str, Layout], given: Mapping[str, CallPlan]) -> ExecutionPlan:
    plans = {}
    for call in graph.calls:
        layout = layouts.get(call.role, Layout())
        is_trained = call.kind == "train_step"
        plans[call.name] = given.get(call.name) or CallPlan(replace(layout, fsdp=is_trained))
    return ExecutionPlan(plans)


def _ladder(graph: Graph, role: str, simulator: Simulator, fits: Fits) -> list[Layout]:
    """The layouts of a role over all ranks, with more and more ranks for a replica: first `tp`, then `pp`.

    Raises:
        ConfigError: there is none.
    """
    machine = simulator.machine
    found, refused = [], None
    for dp, tp, pp in sorted(
        splits(machine.n_ranks, machine.ranks_per_node), key=lambda one: (one[1] * one[2], one[2])
    ):
        layout = Layout(dp, pp, tp)
        try:
            for call in graph.calls:
                if call.role == role:
                    fits(call.name, layout)
        except ConfigError as error:
            refused = error
            continue
        found.append(layout)
    if not found:
        assert refused is not None
        raise refused
    most_tp = max(layout.tp for layout in found)
    return [layout for layout in found if layout.pp == 1 or layout.tp == most_tp]


def uniform(graph: Graph, layout: Layout) -> ExecutionPlan:
    """The plan with one layout for all calls, such as that of `allocation=d2p2m1`; rewards are on its first rank."""
    plans = {}
    for call in graph.calls:
        fsdp = call.kind == "train_step"
        own = Layout(ranks=layout.ranks[:1]) if call.kind == "reward" else replace(layout, fsdp=fsdp)
        plans[call.name] = CallPlan(own)
    return ExecutionPlan(plans)
