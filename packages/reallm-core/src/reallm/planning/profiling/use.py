"""What is measured for a planned job, and how the job uses it: rates of its models, and links of its machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from reallm.planning.job import PlannedJob
from reallm.planning.machine import Link, Machine
from reallm.planning.profiling.measure import MeasuredModel, merged_models
from reallm.planning.profiling.measured_rates import MeasuredRates, Points
from reallm.planning.profiling.model_times import Sizes
from reallm.planning.profiling.order import Order
from reallm.planning.profiling.profile import Profile, model_key
from reallm.planning.rates import Rates
from reallm.planning.stated_rates import StatedRates

MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of the largest pass that is measured, by the kind of device."""
MOST_SEQUENCES = {"cpu": 64, "cuda": 512}
"""Sequences of the widest step of generation that is measured, likewise."""


def order_for(job: PlannedJob, seconds: float = 120.0) -> Order:
    """What to measure for a job: the models of its roles, at lengths of its workload, in parts as its ranks hold them.

    Args:
        job: the job.
        seconds: time for the measurements.
    """
    kinds = {role: {call.kind for call in job.graph.calls if call.role == role} for role in job.models}
    models = [
        MeasuredModel(config, job.settings.roles[role].dtype, "train_step" in kinds[role], "generate" in kinds[role])
        for role, config in job.models.items()
    ]
    return Order(tuple(models), _sizes(job), seconds)


def missing_models(order: Order, profile: Profile | None) -> tuple[MeasuredModel, ...]:
    """The models of an order that a profile lacks times of, with what it has of them, which is measured again.

    Args:
        order: what a job needs.
        profile: what is known; None: nothing.
    """
    missing = []
    for key, model in merged_models(order.models).items():
        known = [*(profile.models.get(key, {}).values() if profile else ())]
        trains, generates = any(each.trains for each in known), any(each.generates for each in known)
        if not known or (model.trains and not trains) or (model.generates and not generates):
            missing.append(
                dataclasses.replace(model, trains=model.trains or trains, generates=model.generates or generates)
            )
    return tuple(missing)


def with_profile(job: PlannedJob, profile: Profile, file: Path) -> PlannedJob:
    """The same job with measured rates, and stated ones for what was not measured, which the rates' `source` says.

    Args:
        job: the job.
        profile: the measurements.
        file: where they come from, for tables.
    """
    machine = _with_links(job.machine, profile)
    rates: dict[str, Rates] = {}
    for role, of_role in job.settings.roles.items():
        stated = StatedRates(machine, job.models[role], of_role.dtype, of_role.optimizer)
        model = profile.models.get(model_key(job.models[role], str(of_role.dtype)), {})
        rates[role] = MeasuredRates(model, profile.links, stated, str(file))
    return dataclasses.replace(job, machine=machine, rates=rates)


def _sizes(job: PlannedJob) -> Sizes:
    workload, machine = job.workload, job.machine
    length = max(2, round(workload.prompts.mean + workload.answers.mean))
    max_tokens = min(MOST_TOKENS[machine.device], max(one.max_tokens for one in job.settings.roles.values()))
    most = max(1, min(max_tokens // length, workload.n_sequences))
    passes = {(n, length) for n in (1, -(-most // 2), most)}
    if 4 * length <= max_tokens:
        passes.add((max(1, most // 4), 4 * length))  # the same tokens in longer sequences: what attention adds
    widest = min(MOST_SEQUENCES[machine.device], workload.n_sequences)
    prompt = max(1, round(workload.prompts.mean))
    return Sizes(
        tp=tuple(2**power for power in range(machine.ranks_per_node.bit_length())),
        passes=tuple(sorted(passes)),
        widths=tuple(sorted({1, -(-widest // 2), widest})),
        contexts=tuple(sorted({prompt, prompt + max(1, round(workload.answers.longest))})),
    )


def _with_links(machine: Machine, profile: Profile) -> Machine:
    """The machine with links within a node, and to host memory, as measured; those between nodes stay as they are."""
    links = profile.links
    return dataclasses.replace(
        machine,
        within_node=_link(links.point_to_point, machine.within_node),
        host=_link(links.host_copy, machine.host),
    )


def _link(points: Points, stated: Link) -> Link:
    """The link on which the shortest and the longest message take as long as measured."""
    if len(points) < 2:
        return stated
    (short, first), (long, last) = min(points), max(points)
    bandwidth = (long - short) / max(last - first, 1e-12)
    return Link(bandwidth, max(0.0, first - short / bandwidth))
