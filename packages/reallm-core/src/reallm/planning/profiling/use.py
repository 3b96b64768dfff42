"""What is measured for a planned job, and how the job uses it: rates of its models, and links of its machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from reallm.algorithms.graph import Graph
from reallm.model.config import ReaLModelConfig
from reallm.planning.cost_settings import CostSettings
from reallm.planning.job import PlannedJob
from reallm.planning.machine import Link, Machine
from reallm.planning.profiling.measure import MeasuredModel
from reallm.planning.profiling.measured_rates import MeasuredRates, Points
from reallm.planning.profiling.model_times import Sizes
from reallm.planning.profiling.profile import ModelProfile, Profile, model_key
from reallm.planning.rates import Rates
from reallm.planning.stated_rates import StatedRates

MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of the largest pass that is measured, by the kind of device."""
MOST_SEQUENCES = {"cpu": 64, "cuda": 512}
"""Sequences of the widest step of generation that is measured, likewise."""


def models_to_measure(
    graph: Graph, models: Mapping[str, ReaLModelConfig], settings: CostSettings
) -> list[MeasuredModel]:
    """The models of a graph's roles, with what its calls do with them."""
    kinds = {role: {call.kind for call in graph.calls if call.role == role} for role in graph.roles}
    return [
        MeasuredModel(models[role], settings.roles[role].dtype, "train_step" in kinds[role], "generate" in kinds[role])
        for role in graph.roles
    ]


def sizes_to_measure(job: PlannedJob) -> Sizes:
    """The lengths and widths of a job's workload, and the parts of models that its ranks may hold."""
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


def measured_rates(
    profile: Profile, file: Path, machine: Machine, models: Mapping[str, ReaLModelConfig], settings: CostSettings
) -> dict[str, Rates]:
    """The rates of each role's model: measured ones, and stated ones where the profile lacks something.

    Args:
        profile: the measurements.
        file: where they come from, for tables.
        machine: states what was not measured.
        models: the architecture of each role's model.
        settings: dtypes and optimizers.
    """
    found: dict[str, Rates] = {}
    for role, of_role in settings.roles.items():
        stated = StatedRates(machine, models[role], of_role.dtype, of_role.optimizer)
        model = profile.models.get(model_key(models[role], str(of_role.dtype)), ModelProfile())
        found[role] = MeasuredRates(model, profile.links, stated, str(file))
    return found


def with_measured_links(machine: Machine, profile: Profile) -> Machine:
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
