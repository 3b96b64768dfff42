"""The search for plans: planted cases, all plans against annealing, memory, and what it says of its result."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest

from reallm.errors import ConfigError
from reallm.parallel.layout import Layout
from reallm.planning.candidates import Candidates, aligned_starts
from reallm.planning.execution_plan import CallPlan
from reallm.planning.exhaustive import is_first_alike
from reallm.planning.heuristic import heuristic, uniform
from reallm.planning.offloading import Fitting
from reallm.planning.search import search
from reallm.planning.simulator import Simulator
from tests.planning.given_costs import CALLS, PPO, GivenCosts, machine

POOR = {"actor_gen": 0.9, "ref_inf": 0.9, "critic_inf": 0.9, "actor_train": 0.5, "critic_train": 0.5}
"""Training that gains little from more ranks."""


def random_costs(seed: int) -> GivenCosts:
    randomly = random.Random(seed)
    return GivenCosts(
        {call.name: randomly.uniform(1, 10) for call in CALLS},
        {call.name: randomly.uniform(0.3, 1) for call in CALLS},
        move_seconds=randomly.uniform(0, 0.5),
        data_seconds=0.01,
        host_seconds=randomly.uniform(0, 0.5),
        parameters={"actor": 64, "ref": 64, "critic": 32},
    )


def test_two_equal_trainers_are_split_over_the_ranks() -> None:
    found = search(Simulator(PPO, GivenCosts(exponent=POOR), machine(4)))
    actor, critic = (set(found.plan.calls[name].layout.ranks) for name in ("actor_train", "critic_train"))
    assert len(actor) == len(critic) == 2
    assert actor.isdisjoint(critic)
    assert found.is_best
    assert found.gain is not None
    assert found.gain > 1.2


def test_a_tiny_critic_leaves_the_ranks_to_the_actor() -> None:
    seconds = {"actor_gen": 8.0, "ref_inf": 2.0, "critic_inf": 0.01, "actor_train": 24.0, "critic_train": 0.02}
    found = search(Simulator(PPO, GivenCosts(seconds), machine(4)))
    assert found.plan.calls["actor_train"].layout.size == 4
    assert found.outcome.seconds == pytest.approx(34.03 / 4)


def test_models_are_offloaded_only_if_memory_is_tight() -> None:
    costs = GivenCosts(host_seconds=0.1, parameters={"actor": 100, "ref": 100, "critic": 10})
    roomy = search(Simulator(PPO, costs, machine(2, memory=1000)))
    assert not any(one.offload for one in roomy.plan.calls.values())
    tight = search(Simulator(PPO, costs, machine(2, memory=340)))
    assert any(one.offload for one in tight.plan.calls.values())
    assert tight.outcome.memory <= 340 < roomy.outcome.memory
    assert tight.outcome.seconds > roomy.outcome.seconds


def test_a_copy_comes_back_beside_the_call_before_where_there_is_room() -> None:
    costs = GivenCosts(host_seconds=0.1, parameters={"actor": 100, "ref": 100, "critic": 10})
    found = search(Simulator(PPO, costs, machine(1, memory=650)))
    assert [name for name, one in found.plan.calls.items() if one.offload] == ["ref_inf"]
    assert [name for name, one in found.plan.calls.items() if one.prefetch] == ["ref_inf"]
    assert found.outcome.seconds == pytest.approx(sum(costs.seconds.values()) + 0.1)  # only until it has left
    assert found.outcome.memory <= 650


def test_smaller_micro_batches_are_taken_where_memory_would_ask_for_offloads() -> None:
    costs = GivenCosts(
        host_seconds=1.0, parameters={"actor": 100, "ref": 100, "critic": 10}, activations=200, limits=(None, 4, 2)
    )
    roomy = search(Simulator(PPO, costs, machine(1, memory=2000)))
    assert not any(one.max_tokens for one in roomy.plan.calls.values())
    tight = search(Simulator(PPO, costs, machine(1, memory=900)))
    assert {name: one.max_tokens for name, one in tight.plan.calls.items() if one.max_tokens} == {"actor_train": 4}
    assert not any(one.offload for one in tight.plan.calls.values())
    assert tight.outcome.memory <= 900 < roomy.outcome.memory
    assert tight.outcome.seconds == pytest.approx(roomy.outcome.seconds + 0.01 * costs.seconds["actor_train"])
    assert "actor_train.max_tokens_per_microbatch=4" in tight.plan.assignments(PPO)
    with_offloads = search(Simulator(PPO, replace(costs, limits=(None,)), machine(1, memory=900)))
    assert any(one.offload for one in with_offloads.plan.calls.values())
    assert tight.outcome.seconds < with_offloads.outcome.seconds


def test_a_call_that_fits_only_with_smaller_micro_batches_has_them() -> None:
    costs = GivenCosts(parameters={"actor": 100}, activations=2000, limits=(None, 4, 2))
    found = search(Simulator(PPO, costs, machine(1, memory=2200)))
    limits = {name: one.max_tokens for name, one in found.plan.calls.items()}
    assert limits["actor_train"] == 4
    assert limits["actor_gen"] is None


def test_a_pipeline_takes_more_micro_batches() -> None:
    costs = GivenCosts(parameters={"critic": 100}, limits=(None, 4, 2), bubble=0.5)

    def fits(call: str, layout: Layout) -> None:
        if call == "critic_train" and layout.pp < 4:
            raise ConfigError("it is too large")

    found = search(Simulator(PPO, costs, machine(4)), fits=fits)
    limits = {name: one.max_tokens for name, one in found.plan.calls.items()}
    assert limits["critic_train"] == 2
    assert limits["actor_train"] is None


def test_what_fits_in_no_layout_names_call_and_items() -> None:
    costs = GivenCosts(parameters={"actor": 2**40})
    with pytest.raises(ConfigError, match=r"'actor_gen' does not fit into 1.0 GiB .* on 2 ranks: .* \(parameters"):
        search(Simulator(PPO, costs, machine(2, memory=2**30)))


def test_what_fits_only_alone_names_rank_call_and_items() -> None:
    costs = GivenCosts(parameters={"actor": 2**30}, activations=2**29)
    too_small = replace(machine(1, memory=6 * 2**30 + 2**29), host_memory=1)
    costs.parameters["critic"] = 2**30  # type: ignore[index]  # a dict
    with pytest.raises(ConfigError, match=r"rank 0 needs 12 GiB of 6.5 GiB in the call 'critic_train' \(actor opt"):
        search(Simulator(PPO, costs, too_small))


@pytest.mark.parametrize(("seed", "memory"), [(0, 2**40), (0, 450), (1, 380), (2, 330)])
def test_branch_and_bound_finds_what_trying_all_plans_finds(seed: int, memory: int) -> None:
    costs, made = random_costs(seed), machine(2, memory)
    simulator = Simulator(PPO, costs, made)
    fitting, candidates = Fitting(simulator), Candidates.of(PPO, costs, made)
    best = float("inf")
    for plans in product(*(candidates.placed(call.name) for call in CALLS)):
        places = simulator.shared([simulator.place(number, plan) for number, plan in enumerate(plans)])
        found = fitting.fitted(places, exact=True)
        if not found.excess:
            best = min(best, found.outcome.seconds)
    result = search(Simulator(PPO, costs, made), n_evaluations=0)
    assert result.is_best
    assert result.lower_bound == result.outcome.seconds
    assert result.outcome.seconds == pytest.approx(best)


def test_branch_and_bound_and_annealing_choose_micro_batches_as_trying_all_plans_does() -> None:
    costs, made = replace(random_costs(3), activations=120, limits=(None, 4)), machine(1, 700)
    simulator = Simulator(PPO, costs, made)
    fitting, candidates = Fitting(simulator), Candidates.of(PPO, costs, made, saving_memory=True)
    tried = []
    for plans in product(*(candidates.placed(call.name) for call in CALLS)):
        places = simulator.shared([simulator.place(number, plan) for number, plan in enumerate(plans)])
        tried.append(fitting.fitted(places, exact=True))
    best = min(found.outcome.seconds for found in tried if not found.excess)
    for n_partial_plans in (100_000, 0):
        result = search(Simulator(PPO, costs, made), n_partial_plans=n_partial_plans)
        assert result.is_best is (n_partial_plans > 0)
        assert result.outcome.seconds == pytest.approx(best)
        assert any(one.max_tokens for one in result.plan.calls.values())


def test_smaller_micro_batches_are_tried_where_memory_forces_another_layout_and_no_offload() -> None:
    costs = replace(random_costs(1), activations=60, limits=(None, 4), bubble=0.3, host_seconds=3.0)
    simulator = Simulator(PPO, costs, machine(2, 500))

    def fits(call: str, layout: Layout) -> None:
        if layout.tp > 1:
            raise ConfigError("layers are not split")

    fitting, candidates = Fitting(simulator), Candidates.of(PPO, costs, simulator.machine, fits=fits)
    smaller = Candidates.of(PPO, costs, simulator.machine, fits=fits, saving_memory=True)
    best, best_of_largest = (
        min(
            found.outcome.seconds
            for plans in product(*(one.placed(call.name) for call in CALLS))
            if not (found := fitting.fitted(simulator.shared(list(map(simulator.place, range(5), plans))))).excess
        )
        for one in (smaller, candidates)
    )
    result = search(simulator, fits=fits)
    assert result.outcome.seconds == pytest.approx(best)
    assert best < 0.98 * best_of_largest
    assert not any(one.offload for one in result.plan.calls.values())


@pytest.mark.parametrize("seed", range(3))
def test_annealing_finds_the_best_of_all_plans(seed: int) -> None:
    costs = random_costs(10 + seed)
    best = search(Simulator(PPO, costs, machine(4)))
    annealed = search(Simulator(PPO, costs, machine(4)), n_partial_plans=0)
    assert best.is_best
    assert not annealed.is_best
    assert annealed.outcome.seconds == pytest.approx(best.outcome.seconds)
    assert annealed.lower_bound <= best.outcome.seconds


def test_a_search_that_gives_up_says_how_far_the_plan_may_be_from_the_best() -> None:
    costs, made = random_costs(4), machine(4, 400)
    best = search(Simulator(PPO, costs, made))
    given_up = search(Simulator(PPO, costs, made), n_partial_plans=200, n_evaluations=200)
    assert best.is_best
    assert not given_up.is_best
    assert given_up.lower_bound <= best.outcome.seconds <= given_up.outcome.seconds
    without = search(Simulator(PPO, costs, made), n_partial_plans=0, n_evaluations=200)
    assert given_up.gap < without.gap


def test_the_same_search_finds_the_same_plan() -> None:
    first, second = (
        search(Simulator(PPO, random_costs(3), machine(16)), n_partial_plans=0, n_evaluations=200) for _ in range(2)
    )
    assert first == second


def test_given_plans_are_kept() -> None:
    given = {"actor_train": CallPlan(Layout.parse("fsdp2@2-3")), "ref_inf": CallPlan(Layout.parse("dp1@1"), True)}
    found = search(Simulator(PPO, GivenCosts(parameters={"ref": 10}), machine(4)), given=given)
    assert {name: found.plan.calls[name] for name in given} == given
    assert found.baseline is not None
    assert {name: found.baseline.calls[name] for name in given} == given


def test_the_heuristic_splits_models_only_as_far_as_memory_demands() -> None:
    costs = GivenCosts(parameters={"actor": 100, "ref": 100, "critic": 10})
    roomy, tight = (heuristic(Simulator(PPO, costs, machine(4, memory))) for memory in (2**40, 330))
    assert {one.plan.layout.short for one in roomy.places} == {"fsdp4", "dp4"}
    layouts = {call.name: one.plan.layout for call, one in zip(CALLS, tight.places, strict=True)}
    assert layouts["actor_train"].tp == 2
    assert layouts["critic_train"].tp == 1
    assert not tight.excess


def test_one_layout_for_all_calls() -> None:
    plan = uniform(PPO, Layout.parse("dp2tp2"))
    assert {name: one.layout.short for name, one in plan.calls.items()} == {
        "actor_gen": "tp2dp2",
        "ref_inf": "tp2dp2",
        "critic_inf": "tp2dp2",
        "actor_train": "tp2fsdp2",
        "critic_train": "tp2fsdp2",
    }


def test_sets_of_ranks_are_aligned_and_within_a_node_or_of_whole_nodes() -> None:
    assert aligned_starts(machine(4, ranks_per_node=2)) == {1: (0, 1, 2, 3), 2: (0, 2), 4: (0,)}
    assert aligned_starts(machine(12, ranks_per_node=6)) == {
        1: tuple(range(12)),
        2: (0, 2, 4, 6, 8, 10),
        4: (0, 6),
        6: (0, 6),
        12: (0,),
    }


def test_of_sets_that_differ_only_in_the_numbers_of_ranks_one_is_tried() -> None:
    assert [first for first in range(8) if is_first_alike((first, 1), [], 8)] == [0]
    assert [first for first in range(0, 8, 2) if is_first_alike((first, 2), [(0, 4)], 8)] == [0, 4]
    assert [first for first in range(8) if is_first_alike((first, 1), [(0, 1)], 8)] == [0, 1, 2, 4]
