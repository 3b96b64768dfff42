"""`PlannedJob`: what an execution plan is made for, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.shared_base import shared_bases
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError
from reallm.model.config import ReaLModelConfig
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import check_fits
from reallm.planning.cost_settings import CostSettings
from reallm.planning.estimated_costs import EstimatedCosts
from reallm.planning.execution_plan import ExecutionPlan
from reallm.planning.machine import Machine
from reallm.planning.rates import Rates
from reallm.planning.simulator import Simulator
from reallm.planning.workload import Workload


@dataclass(frozen=True, eq=False)
class PlannedJob:
    """What an execution plan is made for: calls of models, a machine, and the work of a step."""

    graph: Graph
    models: Mapping[str, ReaLModelConfig]
    """The architecture of each role's model."""
    machine: Machine
    workload: Workload
    settings: CostSettings
    rates: Mapping[str, Rates] = field(default_factory=dict)
    """Measured times of the pieces of a role's model; of other roles they follow from the machine's figures."""
    bases: Mapping[str, str] = field(default_factory=dict)
    """Role that is never trained -> the trained role whose base model it has, and shares where its home is."""

    @classmethod
    def of(
        cls,
        config: TrainingConfig,
        graph: Graph,
        models: Mapping[str, ReaLModelConfig],
        machine: Machine,
        workload: Workload,
        rates: Mapping[str, Rates] | None = None,
    ) -> PlannedJob:
        """The job of a run with this configuration.

        Raises:
            ConfigError: the base of a model is quantized, which one process holds.
        """
        for role, model in models.items():
            if model.base_is_quantized:
                raise ConfigError(
                    f"{role}.lora.quantize_base: a base model in 4 bits is held whole by one process, so that there is "
                    "nothing to plan; leave it out"
                )
        settings, bases = CostSettings.of(config, graph, machine), shared_bases(config, graph)
        return cls(graph, models, machine, workload, settings, rates or {}, bases)

    @cached_property
    def costs(self) -> EstimatedCosts:
        """What its calls and moves cost."""
        return EstimatedCosts(self.graph, self.models, self.machine, self.workload, self.settings, self.rates)

    @cached_property
    def simulator(self) -> Simulator:
        """Simulates its steps."""
        return Simulator(self.graph, self.costs, self.machine, self.workload.optimizer_steps, self.bases)

    def placement(self, plan: ExecutionPlan) -> Placement:
        """The placement that a plan means.

        Raises:
            ConfigError: it is not possible; names the key.
        """
        return plan.placement(self.graph, self.machine.n_ranks, self.bases)

    def check_fits(self, call: str, layout: Layout) -> None:
        """Raise ConfigError if the model of a call cannot be split as a layout says."""
        role = next(one.role for one in self.graph.calls if one.name == call)
        if role in self.models:
            check_fits(self.models[role], layout)
