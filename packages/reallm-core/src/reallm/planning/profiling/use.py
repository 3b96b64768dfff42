"""What is measured for a graph, and how a plan uses it: rates of each role's model, and links of the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from reallm.algorithms.graph import Graph
from reallm.model.config import ReaLModelConfig
from reallm.planning.cost_settings import CostSettings
from reallm.planning.machine import Link, Machine
from reallm.planning.profiling.measure import MeasuredModel
from reallm.planning.profiling.measured_rates import MeasuredRates, Points
from reallm.planning.profiling.profile import ModelProfile, Profile, model_key
from reallm.planning.rates import Rates
from reallm.planning.stated_rates import StatedRates


def models_to_measure(
    graph: Graph, models: Mapping[str, ReaLModelConfig], settings: CostSettings
) -> list[MeasuredModel]:
    """The models of a graph's roles, with what its calls do with them."""
    kinds = {role: {call.kind for call in graph.calls if call.role == role} for role in graph.roles}
    return [
        MeasuredModel(models[role], settings.roles[role].dtype, "train_step" in kinds[role], "generate" in kinds[role])
        for role in graph.roles
    ]


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
        config = models[role]
        stated = StatedRates(machine, config, of_role.dtype, of_role.optimizer)
        model = profile.models.get(model_key(config, str(of_role.dtype)), ModelProfile())
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
