"""Plans of a policy with adapters, whose reference has the same base model: it is one model where they share it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from reallm.errors import ConfigError
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameters import n_parameters
from reallm.parallel.layout import Layout
from reallm.planning.allocation import planned
from reallm.planning.candidates import Candidates
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.heuristic import heuristic, uniform
from reallm.planning.job import PlannedJob
from reallm.planning.offloading import Fitting
from reallm.planning.search import search
from reallm.planning.simulator import Simulator
from reallm.planning.what_if import helpful_changes
from tests.helpers.tiny_config import TINY
from tests.planning.given_costs import CALLS, PPO, GivenCosts, machine, plan_of
from tests.planning.test_allocation import configured, job_of
from tests.planning.test_search import random_costs

BASES = {"ref": "actor"}
ON_ALL = {call.name: "fsdp4" if call.kind == "train_step" else "dp4" for call in CALLS}
COSTS = GivenCosts(parameters={"actor": 100, "ref": 100, "critic": 20})
MODEL = TINY.replace(n_layers=4)
KEYS = {
    "ppo": ("reward.functions=[math]", "ppo.gen.max_new_tokens=8", "ppo.ppo_n_minibatches=1"),
    "grpo": ("reward.functions=[math]", "gen.max_new_tokens=8", "beta=0.1"),
}


def simulator(n_ranks: int = 4, memory: int = 2**40, costs: GivenCosts = COSTS, **options: Any) -> Simulator:
    return Simulator(PPO, costs, machine(n_ranks, memory), bases=BASES, **options)


def peak(made: Simulator, plan: ExecutionPlan) -> int:
    return made.outcome(made.places(plan)).memory


@pytest.mark.parametrize(
    ("layouts", "saved"),
    [
        ({}, 100),
        ({"actor_gen": "tp2dp2"}, 100),
        ({"ref_inf": "tp2dp2"}, 0),  # a copy of its own
        ({"actor_gen": "tp2dp2", "ref_inf": "tp2dp2"}, 0),  # a copy of the actor is not its home
        ({"actor_train": "tp2fsdp2", "ref_inf": "tp2dp2"}, 50),
    ],
)
def test_parameters_count_once_where_the_trained_role_has_its_home(layouts: dict[str, str], saved: int) -> None:
    plan = plan_of(**ON_ALL | layouts)
    assert peak(Simulator(PPO, COSTS, machine(4)), plan) - peak(simulator(), plan) == saved
    with_moves = simulator(costs=replace(COSTS, move_seconds=1.0)).simulate(plan)
    assert not any(span.name.startswith("ref") for span in with_moves.spans if span.kind == "move")
    for memory in with_moves.memory.values():
        assert ("ref parameters" in memory.peak_items) == (not saved)
        assert "actor parameters" in memory.peak_items


def test_what_runs_refuse_is_refused() -> None:
    for key in ("offload", "prefetch"):
        plan = plan_of(**{key: ("ref_inf",)}, **ON_ALL)
        with pytest.raises(ConfigError, match=rf"^ref_inf.{key}=true has no effect: 'ref' shares the base model of"):
            simulator().places(plan)
    apart = plan_of(offload=("ref_inf",), **ON_ALL | {"ref_inf": "tp2dp2"})
    assert simulator().places(apart)[1].offload


@pytest.mark.parametrize(("layout", "first"), [("dp4", "actor_gen"), ("tp2dp2", "ref_inf")])
def test_the_first_call_brings_back_a_model_that_is_shared(layout: str, first: str) -> None:
    plan = plan_of(offload=("actor_train",), **ON_ALL | {"actor_gen": layout})
    found = simulator(costs=replace(COSTS, host_seconds=0.5)).simulate(plan)
    reloads = [span.name for span in found.spans if span.kind == "reload" and span.rank == 0]
    assert reloads[:2] == [first, "actor_train"]  # parameters, and later the optimizer's state


@pytest.mark.parametrize(("seed", "memory"), [(0, 2**40), (0, 450), (1, 380), (2, 330), (3, 300)])
def test_branch_and_bound_finds_what_trying_all_plans_finds(seed: int, memory: int) -> None:
    costs = random_costs(seed)
    made = simulator(2, memory, costs)
    fitting, candidates = Fitting(made), Candidates.of(PPO, costs, made.machine, bases=BASES)
    best = float("inf")
    for plans in product(*(candidates.placed(call.name) for call in CALLS)):
        places = made.shared([made.place(number, plan) for number, plan in enumerate(plans)])
        found = fitting.fitted(places, exact=True)
        if not found.excess:
            best = min(best, found.outcome.seconds)
    result = search(simulator(2, memory, costs), n_evaluations=0)
    assert result.is_best
    assert result.outcome.seconds == pytest.approx(best)
    result.plan.placement(PPO, 2, BASES)
    annealed = search(simulator(2, memory, costs), n_partial_plans=0)
    assert annealed.outcome.seconds >= 0.999 * best
    annealed.plan.placement(PPO, 2, BASES)


def test_a_search_puts_the_reference_where_it_takes_no_memory() -> None:
    def fits(call: str, layout: Layout) -> None:
        if layout.tp * layout.pp > 1:
            raise ConfigError("layers are not split")

    costs = replace(COSTS, host_seconds=1.0)
    tight = 300 + 40  # parameters, gradients and optimizer of the actor, and what is kept of the critic
    found = search(simulator(4, tight, costs), fits=fits)
    assert found.plan.placement(PPO, 4, BASES).shared == BASES
    assert found.outcome.seconds == 36 / 4  # all ranks compute all the time, and nothing is offloaded
    assert found.outcome.memory == tight
    assert search(Simulator(PPO, costs, machine(4, tight)), fits=fits).outcome.seconds > 36 / 4


def test_a_shared_model_is_offloaded_after_the_last_call_of_its_own_role() -> None:
    found = search(
        simulator(1, 350, replace(COSTS, host_seconds=0.1, parameters={"actor": 50, "ref": 50, "critic": 50}))
    )
    calls = found.plan.calls
    assert {name for name, one in calls.items() if one.offload} & {"actor_train", "critic_train"}
    assert not calls["ref_inf"].offload
    assert not calls["ref_inf"].prefetch
    assert found.plan.placement(PPO, 1, BASES).shared == BASES


def test_the_heuristic_keeps_the_reference_with_the_policy() -> None:
    found = heuristic(simulator(4, 300))
    layouts = {call.name: one.plan.layout for call, one in zip(CALLS, found.places, strict=True)}
    assert layouts["actor_train"] == replace(layouts["ref_inf"], fsdp=layouts["actor_train"].fsdp)


def test_a_given_layout_of_the_reference_stays_its_own() -> None:
    given = {"ref_inf": CallPlan(Layout.parse("dp1@1"), True)}
    found = search(simulator(), given=given)
    assert found.plan.calls["ref_inf"] == given["ref_inf"]
    assert not found.plan.placement(PPO, 4, BASES).shared


@pytest.mark.parametrize("algorithm", KEYS)
def test_the_memory_of_a_run(algorithm: str) -> None:
    keys = (*KEYS[algorithm], "dataset.train_bs_n_seqs=8", "actor.path=x", "actor.lora.rank=4", "allocation=search")
    config, graph = configured(algorithm, *keys)
    base = job_of(config, graph, 2)
    actor = MODEL.replace(lora=LoRAConfig(4, 8.0, ("attn.q", "mlp.down")))
    models = {role: actor if role == "actor" else MODEL.replace(is_critic=role == "critic") for role in graph.roles}
    job = PlannedJob.of(config, graph, models, base.machine, base.workload)
    assert job.bases == BASES
    without = replace(job, bases={})

    def memory(one: PlannedJob, plan: ExecutionPlan) -> int:
        return one.simulator.outcome(one.simulator.places(plan)).memory

    together = uniform(graph, Layout.parse("tp2"))
    n_bytes = job.costs.memory("ref_inf", together.calls["ref_inf"]).parameters
    assert n_bytes == pytest.approx(n_parameters(MODEL) * 2 / 2, rel=0.1)  # bfloat16 on two ranks
    assert memory(without, together) - memory(job, together) == n_bytes
    apart = ExecutionPlan({**together.calls, "ref_inf": CallPlan(Layout.parse("dp2"))})
    assert memory(without, apart) == memory(job, apart)
    found = planned(config, job)
    job.placement(found.plan)
    assert not any(name.startswith("ref_inf.") for name in _helpful(job, together))


def _helpful(job: PlannedJob, plan: ExecutionPlan) -> list[str]:
    return [change.text for change in helpful_changes(job, plan, job.simulator.simulate(plan).seconds)]
