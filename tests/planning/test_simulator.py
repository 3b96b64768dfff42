"""Simulated steps: what waits for what, what runs side by side, and the memory that is held."""

from __future__ import annotations

import dataclasses
import random
from itertools import pairwise

import pytest

from reallm.parallel.layout import Layout
from reallm.planning.costs import MoveCost
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.simulator import Simulator
from tests.planning.given_costs import CALLS, PPO, GivenCosts, machine, plan_of

ON_ALL = {call.name: "dp4" for call in CALLS}
SPLIT = ON_ALL | {"actor_train": "fsdp2@0-1", "critic_train": "fsdp2@2-3", "critic_inf": "dp2@2-3"}


def simulator(costs: GivenCosts | None = None, n_ranks: int = 4, memory: int = 2**40) -> Simulator:
    return Simulator(PPO, costs or GivenCosts(), machine(n_ranks, memory))


def test_calls_on_the_same_ranks_follow_each_other() -> None:
    found = simulator().simulate(plan_of(**ON_ALL))
    assert found.calls == {
        "actor_gen": (0, 2),
        "ref_inf": (2, 2.5),
        "critic_inf": (2.5, 3),
        "actor_train": (3, 6),
        "critic_train": (6, 9),
    }
    assert found.seconds == 9
    assert set(found.idle.values()) == {0}


def test_calls_on_other_ranks_run_side_by_side() -> None:
    found = simulator().simulate(plan_of(**SPLIT))
    assert found.calls["actor_train"] == found.calls["critic_train"]
    assert found.seconds == 2 + 0.5 + 1 + 6
    assert [span.name for span in found.critical_path] == ["actor_gen", "ref_inf", "critic_inf", "actor_train"]
    assert found.idle == {0: 1 / 9.5, 1: 1 / 9.5, 2: 0, 3: 0}


def test_calls_beside_each_other_take_longer_where_they_share_a_node() -> None:
    costs = GivenCosts(contention=0.5)
    assert simulator(costs).simulate(plan_of(**ON_ALL)).seconds == 9
    assert simulator(costs).simulate(plan_of(**SPLIT)).seconds == 2 + 0.5 + 1 + 9
    found = simulator(costs).simulate(plan_of(**ON_ALL | {"ref_inf": "dp2@0-1", "critic_inf": "dp1@2"}))
    assert found.calls["ref_inf"] == (2, 3.5)
    assert found.calls["critic_inf"] == (2, pytest.approx(4 + 0.5 * 2 / 3))  # half of the time, two of three others
    two_nodes = dataclasses.replace(machine(2), n_nodes=2)
    assert Simulator(PPO, costs, two_nodes).simulate(plan_of(**SPLIT)).seconds == 2 + 0.5 + 1 + 6


def test_a_call_waits_for_what_it_reads_and_receives_it() -> None:
    layouts = {"actor_gen": "dp1@0", "ref_inf": "dp2@1-2", "critic_inf": "dp1@3"}
    found = simulator(GivenCosts(data_seconds=0.25)).simulate(plan_of(**ON_ALL | layouts))
    assert found.calls["ref_inf"] == (8.5, 9.5)  # rank 0 sends twice
    assert found.calls["critic_inf"] == (8.25, 10.25)
    waiting = next(span for span in found.spans if span.rank == 1)
    assert (waiting.kind, waiting.name, waiting.end) == ("wait", "actor_gen to ref_inf", 8.0)


def test_weights_are_moved_once_they_are_trained() -> None:
    found = simulator(GivenCosts(move_seconds=1)).simulate(plan_of(**ON_ALL | {"actor_gen": "tp4"}))
    moves = [span for span in found.spans if span.kind == "move" and span.rank == 0]
    assert [(span.name, span.end - span.start) for span in moves] == [("actor to tp4", 1)]
    assert moves[0].start >= found.calls["actor_train"][1]
    assert found.seconds == 10


def test_what_is_offloaded_is_loaded_before_its_next_call() -> None:
    costs = GivenCosts(host_seconds=0.5, parameters={"ref": 100, "actor": 40})
    kept = simulator(costs).simulate(plan_of(**ON_ALL))
    found = simulator(costs).simulate(plan_of(("ref_inf",), **ON_ALL))
    assert found.seconds == kept.seconds + 1  # there and back; nothing else is to do meanwhile
    kinds = [span.kind for span in found.spans if span.rank == 0 and span.name == "ref_inf" and span.kind != "wait"]
    assert kinds == ["reload", "call", "offload"]
    held = dict(found.memory[0].over_time)
    assert held[found.calls["actor_train"][0]] == dict(kept.memory[0].over_time)[kept.calls["actor_train"][0]] - 100
    assert found.memory[0].host_peak == 100


def test_what_is_prefetched_comes_back_beside_the_call_before() -> None:
    costs = GivenCosts(host_seconds=0.5, parameters={"ref": 100, "actor": 40})
    kept = simulator(costs).simulate(plan_of(**ON_ALL))
    late = simulator(costs).simulate(plan_of(("ref_inf",), **ON_ALL))
    found = simulator(costs).simulate(plan_of(("ref_inf",), ("ref_inf",), **ON_ALL))
    assert found.seconds == kept.seconds + 0.5  # only until it has left
    (reload,) = (span for span in found.spans if span.rank == 0 and span.kind == "reload")
    assert (reload.name, reload.start, reload.end) == ("ref_inf", 0.0, 0.5)
    held, held_late = dict(found.memory[0].over_time), dict(late.memory[0].over_time)
    assert held[found.calls["actor_gen"][0]] == held_late[late.calls["actor_gen"][0]] + 100
    assert held[found.calls["actor_train"][0]] == held_late[late.calls["actor_train"][0]]


def test_a_call_waits_for_its_own_copy_alone() -> None:
    costs = GivenCosts(host_seconds=9, parameters={"ref": 100})
    found = simulator(costs).simulate(plan_of(("ref_inf",), ("ref_inf",), **ON_ALL))
    assert found.calls["actor_gen"][0] < 9
    (reload,) = (span for span in found.spans if span.rank == 0 and span.kind == "reload")
    assert found.calls["ref_inf"][0] == reload.end


def test_the_peak_of_memory_says_what_is_held() -> None:
    costs = GivenCosts(parameters={"actor": 80, "critic": 8}, activations=5)
    found = simulator(costs).simulate(plan_of(**ON_ALL | {"actor_gen": "tp4"}))
    assert found.memory[0].peak_call == "actor_train"
    assert found.memory[0].peak_items == {
        "actor parameters": 80,
        "actor optimizer": 80,
        "actor_train gradients": 80,
        "actor parameters for actor_gen": 20,
        "critic parameters": 8,
        "critic optimizer": 8,
        "actor_train activations": 5,
    }


def random_plan(randomly: random.Random, n_ranks: int) -> ExecutionPlan:
    calls = {}
    for call in CALLS:
        size = randomly.choice([1, 2, 4, n_ranks])
        first = randomly.randrange(n_ranks // size) * size
        tp = randomly.choice([one for one in (1, 2) if one <= size])
        ranks = tuple(range(first, first + size))
        layout = Layout(size // tp, 1, tp, fsdp=call.kind == "train_step", ranks=ranks)
        calls[call.name] = CallPlan(layout, randomly.random() < 0.3, prefetch=randomly.random() < 0.5)
    return ExecutionPlan(calls)


@pytest.mark.parametrize("seed", range(3))
def test_random_plans(seed: int) -> None:
    """No rank does two things at once, the fast outcome is that of the simulation, and the critical path has no gap."""
    randomly = random.Random(seed)
    costs = GivenCosts(move_seconds=0.3, data_seconds=0.01, host_seconds=0.2, parameters={"actor": 64, "ref": 32})
    simulated = simulator(costs, n_ranks=8)
    for _ in range(30):
        plan = random_plan(randomly, 8)
        found, outcome = simulated.simulate(plan), simulated.outcome(simulated.places(plan))
        assert outcome.seconds == pytest.approx(found.seconds)
        assert outcome.memory == max(memory.peak for memory in found.memory.values())
        assert all(sum(memory.peak_items.values()) == memory.peak for memory in found.memory.values())
        for rank in range(8):
            spans = [one for one in found.spans if one.rank == rank and one.kind not in ("reload", "offload")]
            assert all(one.end <= following.start + 1e-9 for one, following in pairwise(spans))
            assert spans[-1].end == pytest.approx(found.seconds)
        assert all(one.end == pytest.approx(following.start) for one, following in pairwise(found.critical_path))
        assert found.critical_path[-1].end == pytest.approx(found.seconds)


def test_a_step_is_a_function_of_plan_and_costs() -> None:
    plan = random_plan(random.Random(7), 8)
    assert simulator(n_ranks=8).simulate(plan) == simulator(n_ranks=8).simulate(plan)


def test_a_plan_takes_as_long_whatever_was_simulated_before() -> None:
    class Sharded(GivenCosts):
        def host_copy(self, role: str, layout: Layout, *, with_optimizer: bool) -> MoveCost:
            return MoveCost(1.0 / (layout.dp if layout.fsdp else 1), 1)

    plans = [
        plan_of(("critic_train",), **ON_ALL),  # critic_inf is computed at the home, which is sharded
        plan_of(("critic_inf",), **ON_ALL | {"critic_train": "fsdp2tp2"}),
    ]
    fresh = [simulator(Sharded()).simulate(plan).seconds for plan in plans]
    used = simulator(Sharded())
    assert [used.simulate(plan).seconds for plan in plans] == fresh
