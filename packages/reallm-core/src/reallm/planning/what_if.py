"""What determines the time of a step, and which single change of plan, settings or machine would help most."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from reallm.planning.execution_plan import ExecutionPlan
from reallm.planning.job import PlannedJob
from reallm.planning.machine import Link
from reallm.planning.simulation import Simulation
from reallm.planning.workload import Lengths

LEAST_GAIN = 0.02
"""Share of a step that a change must save to be worth telling."""
CUT = 0.9
"""Share of the answers that are not cut by the change that shortens the longest ones."""


@dataclass(frozen=True)
class Bottleneck:
    """What takes most of the time that determines a step."""

    name: str
    """A call, or what is moved for it."""
    kind: str
    seconds: float
    share: float
    """Share of the step."""


@dataclass(frozen=True)
class Change:
    """A single change, and the time of a step with it."""

    text: str
    seconds: float


def bottleneck(simulation: Simulation) -> Bottleneck:
    """The part of the critical path that takes longest."""
    totals: dict[tuple[str, str], float] = {}
    for span in simulation.critical_path:
        key = span.name, span.kind
        totals[key] = totals.get(key, 0.0) + span.end - span.start
    (name, kind), seconds = max(totals.items(), key=lambda item: item[1])
    return Bottleneck(name, kind, seconds, seconds / simulation.seconds if simulation.seconds else 0.0)


def helpful_changes(job: PlannedJob, plan: ExecutionPlan, seconds: float) -> list[Change]:
    """Single changes that make a step faster, the most helpful first: of the job, with the same plan.

    Args:
        job: the job.
        plan: its plan.
        seconds: the time of a step under the plan.
    """
    found = []
    for text, changed, changed_plan in _changes(job, plan):
        simulator = changed.simulator
        outcome = simulator.outcome(simulator.places(changed_plan))
        fits = changed.machine.fits(outcome.memory, outcome.host_memory)
        if fits and outcome.seconds < (1 - LEAST_GAIN) * seconds:
            found.append(Change(text, outcome.seconds))
    return sorted(found, key=lambda change: change.seconds)


def _changes(job: PlannedJob, plan: ExecutionPlan) -> Iterator[tuple[str, PlannedJob, ExecutionPlan]]:
    """Text, job and plan of each change."""
    machine = job.machine
    if machine.n_nodes > 1:
        faster = dataclasses.replace(machine, between_nodes=_doubled(machine.between_nodes))
        yield "twice the bandwidth between nodes", dataclasses.replace(job, machine=faster), plan
    if machine.ranks_per_node > 1:
        faster = dataclasses.replace(machine, within_node=_doubled(machine.within_node))
        yield "twice the bandwidth within nodes", dataclasses.replace(job, machine=faster), plan
    if not job.rates:
        faster = dataclasses.replace(machine, memory_bandwidth=2 * machine.memory_bandwidth)
        yield "twice the bandwidth of the devices' memory", dataclasses.replace(job, machine=faster), plan
        faster = dataclasses.replace(machine, flops=2 * machine.flops)
        yield "twice the speed of matrix products", dataclasses.replace(job, machine=faster), plan
    answers = job.workload.answers
    cut = answers.values[min(len(answers.values) - 1, int(CUT * len(answers.values)))]
    if cut < answers.longest:
        shorter = dataclasses.replace(job.workload, answers=Lengths(tuple(min(cut, one) for one in answers.values)))
        text = f"cutting the longest tenth of the answers at {cut:,} tokens"
        yield text, dataclasses.replace(job, workload=shorter), plan
    for role, settings in job.settings.roles.items():
        if settings.gradient_checkpointing != "none" and role in job.graph.trained_roles:
            roles = {**job.settings.roles, role: dataclasses.replace(settings, gradient_checkpointing="none")}
            changed = dataclasses.replace(job, settings=dataclasses.replace(job.settings, roles=roles))
            yield f"{role}.gradient_checkpointing=none", changed, plan
        tokens = 2 * settings.max_tokens
        yield f"{role}.max_tokens_per_microbatch={tokens}", _with_tokens(job, role, tokens), plan
    shared = job.placement(plan).shared
    shared_calls = {call.name for call in job.graph.calls if call.role in shared}
    for name, one in plan.calls.items():
        if one.max_tokens is not None:
            tokens = 2 * one.max_tokens
            larger = ExecutionPlan({**plan.calls, name: dataclasses.replace(one, max_tokens=tokens)})
            yield f"{name}.max_tokens_per_microbatch={tokens}", job, larger
        if one.offload:
            kept = ExecutionPlan({**plan.calls, name: dataclasses.replace(one, offload=False)})
            yield f"{name}.offload=false", job, kept
        if not one.prefetch and name not in shared_calls and any(other.offload for other in plan.calls.values()):
            ahead = ExecutionPlan({**plan.calls, name: dataclasses.replace(one, prefetch=True)})
            yield f"{name}.prefetch=true", job, ahead


def _doubled(link: Link) -> Link:
    return dataclasses.replace(link, bandwidth=2 * link.bandwidth)


def _with_tokens(job: PlannedJob, role: str, tokens: int) -> PlannedJob:
    roles = {**job.settings.roles, role: dataclasses.replace(job.settings.roles[role], max_tokens=tokens)}
    return dataclasses.replace(job, settings=dataclasses.replace(job.settings, roles=roles))
