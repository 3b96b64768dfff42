"""Planning anew between steps, as answers grow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reallm.algorithms.placement import Placement
from reallm.planning.execution_plan import ExecutionPlan
from reallm.planning.job import PlannedJob
from reallm.planning.replan import Replanning, replan
from reallm.planning.simulator import Simulator
from tests.planning.given_costs import PPO, GivenCosts, machine, plan_of

EQUAL = {"ref_inf": "dp4", "critic_inf": "dp4", "actor_gen": "dp4", "actor_train": "fsdp4", "critic_train": "fsdp4"}
POOR = {"actor_train": 0.5, "critic_train": 0.5}
"""Training that gains little from more ranks, so that it is better split over them."""


class Job:
    """A planned job with given costs."""

    def __init__(self, costs: GivenCosts) -> None:
        self.graph, self.costs, self.machine = PPO, costs, machine(4)
        self.simulator = Simulator(PPO, costs, self.machine)
        self.workload = type("Workload", (), {"n_minibatches": 1, "n_epochs": 1})

    def check_fits(self, call: str, layout: object) -> None:
        """All layouts are possible."""

    def placement(self, plan: ExecutionPlan) -> Placement:
        """The placement that a plan means."""
        return plan.placement(PPO, 4)


def planned_anew(costs: GivenCosts, present: ExecutionPlan, n_steps: int) -> Replanning:
    job: PlannedJob = Job(costs)  # type: ignore[assignment]
    return replan(job, present, n_steps, n_evaluations=0, n_partial_plans=0)


def test_a_plan_changes_if_it_saves_more_over_the_remaining_steps_than_the_move_costs() -> None:
    costs = GivenCosts(exponent=POOR, move_seconds=0.4, parameters={"actor": 8, "critic": 8})
    found = planned_anew(costs, plan_of(**EQUAL), n_steps=100)
    gain = found.seconds_now - found.found.outcome.seconds
    assert found.seconds_now == pytest.approx(15)  # generation 2, scores 1, training 6 + 6
    assert gain > 0
    assert found.move_seconds > 0
    assert found.saved_seconds == pytest.approx(100 * gain - found.move_seconds)
    assert found.pays_off
    few = replace(found, n_steps=0)
    assert not few.pays_off
    assert replace(few, fits_now=False).pays_off
