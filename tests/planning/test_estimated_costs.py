"""Costs of calls and moves: what doubles, what divides, and exact bytes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Transfer
from reallm.config.optimizer import OptimizerConfig
from reallm.parallel.layout import Layout
from reallm.planning.cost_settings import CostSettings, RoleSettings
from reallm.planning.estimated_costs import EstimatedCosts
from reallm.planning.execution_plan import CallPlan
from reallm.planning.known_machines import known_machine, with_ranks
from reallm.planning.lengths import Lengths
from reallm.planning.machine import Link
from reallm.planning.rank_share import RankShare
from reallm.planning.workload import Workload
from reallm.reallocation.plan import plan
from reallm.specs import ModelFunctionCall
from reallm.training.memory import estimate
from tests.helpers.tiny_config import TINY
from tests.planning.given_costs import PPO

MACHINE = with_ranks(known_machine("h100"), 16)
MODEL = TINY.replace(
    n_layers=8, hidden_size=512, n_q_heads=8, n_kv_heads=4, head_dim=64, intermediate_size=1024, vocab_size=1000
)
WORK = Workload(64, Lengths.constant(100), 1, Lengths.constant(300), n_minibatches=2)
HALF = RoleSettings(torch.bfloat16, max_tokens=1600)


def costs(work=WORK, zero=1, role=HALF, model=MODEL, machine=MACHINE, **others):
    models = {"actor": model, "ref": model, "critic": model.replace(is_critic=True)}
    return EstimatedCosts(PPO, models, machine, work, CostSettings(dict.fromkeys(models, role), zero, **others))


def call(name, layout, **changes):
    return costs(**changes).call(name, CallPlan(Layout.parse(layout)))


CALLS = [one.name for one in PPO.calls]


@pytest.mark.parametrize("name", CALLS)
def test_twice_the_sequences_or_longer_ones_take_longer(name):
    for more in ({"n_prompts": 128}, {"answers": Lengths.constant(600)}, {"prompts": Lengths.constant(200)}):
        assert call(name, "dp2", work=dataclasses.replace(WORK, **more)).seconds > call(name, "dp2").seconds


@pytest.mark.parametrize("name", [name for name in CALLS if name != "actor_gen"])
def test_tensor_parallelism_divides_computing_and_adds_communication(name):
    whole, split = call(name, "dp1"), call(name, "tp2")
    assert split.compute == pytest.approx(whole.compute / 2, rel=0.25)
    assert not whole.communication
    assert split.communication > 0


def test_sequence_parallelism_divides_all_activations_of_training():
    plan = CallPlan(Layout.parse("tp2"))
    with_it, without = (costs(sequence_parallel=value).memory("actor_train", plan) for value in (True, False))
    whole = costs().memory("actor_train", CallPlan(Layout.parse("dp1")))
    assert with_it.activations == whole.activations // 2 < without.activations
    assert with_it.parameters == without.parameters


def test_data_parallelism_divides_computing():
    whole, split = call("ref_inf", "dp1"), call("ref_inf", "dp4")
    assert split.compute == pytest.approx(whole.compute / 4, rel=0.05)
    assert not split.communication


def test_decoding_on_more_ranks_reads_all_weights_on_each():
    whole, split = call("actor_gen", "dp1"), call("actor_gen", "dp4")
    assert whole.compute / 4 < split.compute < whole.compute


def test_a_pipeline_waits_while_it_fills_and_drains():
    cost = call("actor_train", "pp4", role=dataclasses.replace(HALF, max_tokens=400))
    assert cost.n_microbatches == 32
    assert cost.bubble == pytest.approx(3 / 32 * cost.compute, rel=0.2)  # stages differ by embedding and head
    assert cost.bubble < call("actor_train", "pp4", role=dataclasses.replace(HALF, max_tokens=3200)).bubble


def test_limits_are_halved_as_long_as_the_longest_sequence_is_within_them():
    assert costs().token_limits("actor_train") == costs().token_limits("ref_inf") == (None, 800, 400)
    assert costs().token_limits("actor_gen") == (None,)
    assert costs(max_tokens={"actor_train": 1000}).token_limits("actor_train") == (None,)
    smaller = CallPlan(Layout.parse("dp1"), max_tokens=400)
    assert costs().memory("ref_inf", smaller).activations < costs().memory("ref_inf", CallPlan(Layout())).activations
    assert costs(max_tokens={"ref_inf": 400}).call("ref_inf", CallPlan(Layout())) == costs().call("ref_inf", smaller)


def test_a_pipeline_generates_with_a_step_in_flight_for_each_stage():
    machine = dataclasses.replace(MACHINE, within_node=Link(1e15, 0.0))
    many = call("actor_gen", "pp4", machine=machine)
    assert many.bubble < 0.25 * many.compute
    alone = call("actor_gen", "pp4", machine=machine, work=dataclasses.replace(WORK, n_prompts=1))
    assert alone.bubble > 2 * alone.compute  # three of four stages wait for a sequence's token


def test_zero_levels_communicate_more_and_hold_less():
    plans = [CallPlan(Layout.parse("fsdp8@0-3,8-11"))] * 3
    levels = [costs(zero=zero, role=dataclasses.replace(HALF, max_tokens=400)) for zero in (1, 2, 3)]
    times = [one.call("actor_train", plan).communication for one, plan in zip(levels, plans, strict=True)]
    items = [one.memory("actor_train", plan) for one, plan in zip(levels, plans, strict=True)]
    assert times == sorted(times)
    assert times[0] < times[2]
    assert [one.in_call for one in items] == sorted((one.in_call for one in items), reverse=True)
    assert items[0].gradients == 8 * items[1].gradients


def test_gradient_checkpointing_computes_forward_passes_once_more_and_holds_less():
    full = dataclasses.replace(HALF, gradient_checkpointing="full")
    none, recomputed = call("actor_train", "dp1"), call("actor_train", "dp1", role=full)
    assert 1.25 < recomputed.compute / none.compute < 1.4
    one = CallPlan(Layout.parse("dp1"))
    assert costs(role=full).memory("actor_train", one).activations < costs().memory("actor_train", one).activations


def test_gathers_are_hidden_on_a_gpu_and_not_on_a_cpu():
    cpu = dataclasses.replace(MACHINE, device="cpu")
    assert call("actor_train", "fsdp8", machine=cpu).communication > call("actor_train", "fsdp8").communication


def test_a_layout_on_other_nodes_costs_the_same_and_one_across_nodes_more():
    assert call("actor_train", "tp4@8-11") == call("actor_train", "tp4")
    assert call("actor_train", "tp4@6-9").communication > call("actor_train", "tp4").communication


def test_passes_over_the_sequences():
    work = dataclasses.replace(WORK, n_epochs=3)
    assert call("actor_train", "dp2", work=work).seconds == pytest.approx(3 * call("actor_train", "dp2").seconds)


@pytest.mark.parametrize(("source", "target"), [("pp2tp2fsdp2", "dp4tp2"), ("fsdp8", "tp4@8-11"), ("tp2", "tp2")])
def test_bytes_of_moves_are_those_of_their_plans(source, target):
    layouts = Layout.parse(source), Layout.parse(target)
    cost, planned = costs().move("actor", *layouts), plan(MODEL, *layouts)
    assert cost.n_bytes == 2 * planned.total_elements
    assert bool(cost.seconds) == bool(cost.n_bytes)


def test_bytes_of_data_and_of_copies_to_host_memory():
    sent = costs().data(Transfer("actor_gen", "ref_inf", ("input_ids", "prompt_lens"), 0, 9))
    assert sent.n_bytes == 8 * 64 * 400 + 8 * 64
    values = costs().data(Transfer("critic_inf", "actor_train", ("values",), 0, 9))
    assert values.n_bytes == 4 * 64 * 300
    layout = Layout.parse("tp2fsdp2")
    held = RankShare(MODEL, layout, 1).held
    assert costs().host_copy("actor", layout, with_optimizer=False).n_bytes == 2 * held
    assert costs().host_copy("actor", layout, with_optimizer=True).n_bytes == (2 + 3 * 4) * held


def test_memory_on_one_rank_is_that_of_the_estimate_before_training():
    rows = Workload(64, Lengths.constant(400), n_minibatches=2)  # of which all tokens are trained on
    items = costs(work=rows).memory("actor_train", CallPlan(Layout.parse("dp1")))
    told = estimate(MODEL, torch.bfloat16, torch.device("cpu"), [400] * 4, optimizer=OptimizerConfig())
    assert (items.parameters, items.gradients, items.optimizer) == (told.parameters, told.gradients, told.optimizer)
    temporary = items.activations + items.other["gradients of a micro-batch"]
    assert temporary == pytest.approx(told.activations, rel=0.02)


def test_memory_divides():
    whole, split = (costs().memory("actor_gen", CallPlan(Layout.parse(text))) for text in ("dp1", "pp2tp2"))
    assert split.parameters == pytest.approx(whole.parameters / 4, rel=0.2)
    assert split.kv_cache == pytest.approx(whole.kv_cache / 4)
    assert whole.kv_cache == 64 * 400 * 8 * 2 * 4 * 64 * 2
    trained = [costs().memory("actor_train", CallPlan(Layout.parse(text))) for text in ("dp1", "tp4")]
    assert trained[0].activations / 4 < trained[1].activations < trained[0].activations


def test_rewards_take_their_stated_time():
    calls = [*PPO.calls, ModelFunctionCall("rew_fn", "functions", "reward", ("input_ids",), ("scores",))]
    settings = CostSettings(dict.fromkeys(("actor", "ref", "critic"), HALF), reward_seconds={"rew_fn": 0.5})
    models = {"actor": MODEL, "ref": MODEL, "critic": MODEL.replace(is_critic=True)}
    one = EstimatedCosts(Graph.from_calls(calls), models, MACHINE, WORK, settings)
    assert one.call("rew_fn", CallPlan(Layout.parse("dp2"))).seconds == pytest.approx(64 * 0.5 / 2)
