"""`replan`: whether another plan pays off between two steps of a run, once its workload has changed.

Answers often grow as a policy is trained, so that the plan that was the best for the first steps is not for later ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from reallm.planning.execution_plan import ExecutionPlan
from reallm.planning.job import PlannedJob
from reallm.planning.search import EVALUATIONS, PARTIAL_PLANS, SearchResult, search


@dataclass(frozen=True)
class Replanning:
    """The best plan from now on, and what it would cost to change to it."""

    found: SearchResult
    """The search with the changed workload."""
    seconds_now: float
    """Time of a step under the present plan, with the changed workload."""
    move_seconds: float
    """Time to bring models, with the optimizers' states, from their present homes to the new ones."""
    fits_now: bool
    """Whether the present plan still fits into memory."""
    n_steps: int
    """Steps that are left."""

    @property
    def saved_seconds(self) -> float:
        """What changing the plan saves over all steps that are left; below 0 if it costs more than it gains."""
        return self.n_steps * (self.seconds_now - self.found.outcome.seconds) - self.move_seconds

    @property
    def pays_off(self) -> bool:
        """Whether to change the plan: it saves time, or the present one no longer fits."""
        return not self.fits_now or self.saved_seconds > 0.0


def replan(
    job: PlannedJob,
    present: ExecutionPlan,
    n_steps: int,
    *,
    seed: int = 1,
    n_evaluations: int = EVALUATIONS,
    n_partial_plans: int = PARTIAL_PLANS,
) -> Replanning:
    """Plan anew between two steps of a run.

    The homes of roles move one after another; copies are made from them anyway before they are next used. An optimizer
    moves like the parameters, as many times their bytes.

    Args:
        job: the job with the changed workload.
        present: the plan so far.
        n_steps: number of steps that are left.
        seed: see `search`.
        n_evaluations: see `search`.
        n_partial_plans: see `search`.

    Raises:
        ConfigError: no plan was found that fits into memory.
    """
    found = search(
        job.simulator,
        fits=job.check_fits,
        seed=seed,
        n_evaluations=n_evaluations,
        n_partial_plans=n_partial_plans,
    )
    now = job.simulator.outcome(job.simulator.places(present))
    before, after = job.placement(present), job.placement(found.plan)
    seconds = 0.0
    for role in job.graph.roles:
        if role in after.shared:
            continue
        times = 1.0
        for call in job.graph.train_calls:
            if call.role == role:
                memory = job.costs.memory(call.name, found.plan.calls[call.name])
                times += memory.optimizer / max(1, memory.parameters)
        seconds += times * job.costs.move(role, before.homes[role], after.homes[role]).seconds
    fits = not job.machine.excess(now.memory, now.host_memory)
    return Replanning(found, now.seconds, seconds, fits, n_steps)
