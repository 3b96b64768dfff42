"""Profiles: a real, tiny one of this machine, its file, and rates that are read from it."""

import os
from pathlib import Path

import pytest
import torch

from reallm.algorithms.graph import Graph
from reallm.cli.algorithm import load_configuration
from reallm.errors import DataError
from reallm.model.config import Extra, MoEConfig, RopeConfig
from reallm.parallel.layout import Layout
from reallm.planning.execution_plan import CallPlan
from reallm.planning.job import PlannedJob
from reallm.planning.machine import Link
from reallm.planning.profiling.measure import MeasuredModel, measure, setting_of
from reallm.planning.profiling.measured_rates import MeasuredRates, interpolate
from reallm.planning.profiling.model_times import Sizes, shard_config
from reallm.planning.profiling.on_ranks import known_profile
from reallm.planning.profiling.order import Order
from reallm.planning.profiling.profile import (
    DecodeTimes,
    LinkProfile,
    ModelProfile,
    PassTimes,
    Profile,
    model_key,
    read_profiles,
    write_profile,
)
from reallm.planning.profiling.use import missing_models, order_for, with_profile
from reallm.planning.stated_rates import StatedRates
from reallm.planning.this_machine import this_machine
from reallm.planning.workload import Lengths, Workload
from reallm.plugins import registry
from tests.helpers.tiny_config import TINY

KEY = model_key(TINY, "torch.float32")
MODEL = ModelProfile(
    passes=(
        PassTimes(1, 1, 10, 1.0, 5.0, 2.0, 7.0),
        PassTimes(1, 3, 10, 3.0, 5.0, 6.0, 7.0),
        PassTimes(1, 1, 30, 3.6, 5.0, 6.0, 7.0),
    ),
    decoding=(
        DecodeTimes(1, 1, 10, 1.0, 4.0),
        DecodeTimes(1, 5, 10, 3.0, 4.0),
        DecodeTimes(1, 1, 30, 2.0, 4.0),
        DecodeTimes(1, 5, 30, 6.0, 4.0),
        DecodeTimes(1, 5, 30, 9.0, 7.0, "fsdp"),
    ),
    optimizer=((100, 1.0), (300, 2.0)),
    starts=((100, 3.0), (300, 5.0)),
)
ALONE = ModelProfile(
    passes=(
        PassTimes(1, 1, 10, 0.5, 3.0, 1.0, 4.0),
        PassTimes(1, 3, 10, 1.0, 3.0, 2.0, 4.0),
        PassTimes(1, 1, 30, 1.2, 3.0, 2.0, 4.0),
    ),
    optimizer=((100, 0.5), (300, 1.0)),
)
SUMS = {2: ((1000, 1.0), (3000, 2.0))}
LINKS = LinkProfile(SUMS, SUMS, SUMS, ((1000, 3.0),), ())


def _rates(model=MODEL, links=LINKS):
    return MeasuredRates({2: model}, links, StatedRates(this_machine(2), TINY, torch.float32), "profile.json")


def test_values_between_points_are_linear():
    assert interpolate([(1, 10.0), (3, 20.0), (5, 0.0)], 2) == 15
    assert interpolate([(1, 10.0), (3, 20.0)], 5) == 30
    assert interpolate([(1, 10.0), (3, 20.0)], 0) == 10
    assert interpolate([(1, 10.0), (3, 0.0)], 5) == 0
    assert interpolate([(2, 10.0)], 4) == 20


def test_measured_rates_follow_tokens_lengths_widths_and_contexts():
    rates = _rates()
    assert rates.forward("block", [10, 10]) == 2
    assert rates.forward("head", [10, 10]) == 5
    assert rates.backward("block", [10, 10]) == 4
    assert rates.forward("embedding", [10]) == 0
    assert rates.forward("block", [30]) == pytest.approx(3.6)
    assert rates.forward("block", [20]) == pytest.approx(2 + 0.6 * (20 * 10) / (30 * 20))
    assert rates.decode("block", 3, 10) == 2
    assert rates.decode("block", 3, 20) == 3
    assert rates.decode("head", 3, 20) == 4
    assert rates.decode("block", 5, 30, 1, "fsdp") == 9
    assert rates.decode("block", 5, 30, 1, "pp") == 6  # not measured
    assert rates.optimizer(200) == 1.5
    assert rates.generation_start(200) == 4
    assert rates.all_reduce(2000, [0, 1]) == 1.5
    assert rates.all_gather(2000, [0, 1]) == rates.reduce_scatter(2000, [0, 1]) == 1.5
    assert rates.all_reduce(2000, [0]) == 0
    assert rates.point_to_point(2000, [0, 1]) == 6


def test_what_is_not_measured_is_stated_and_said():
    rates, stated = _rates(), StatedRates(this_machine(2), TINY, torch.float32)
    assert rates.source == "profile.json (host copies stated)"
    assert rates.host_copy(10**6) == stated.host_copy(10**6)
    assert rates.all_reduce(1000, range(4)) == stated.all_reduce(1000, range(4))
    share = stated.forward("block", [10, 10], 2) / stated.forward("block", [10, 10], 1)
    assert rates.forward("block", [10, 10], 2) == pytest.approx(2 * share)

    rates = _rates(ModelProfile(), LinkProfile())
    assert "passes" in rates.source
    assert rates.decode("block", 3, 20) == stated.decode("block", 3, 20)
    assert rates.backward("head", [9]) == stated.backward("head", [9])
    assert rates.optimizer(200) == stated.optimizer(200)
    assert rates.generation_start(200) == stated.generation_start(200)


def test_rates_lie_between_those_of_one_rank_and_of_all():
    rates = MeasuredRates({1: ALONE, 3: MODEL}, LINKS, StatedRates(this_machine(3), TINY, torch.float32), "file")
    assert [rates.when_busy(n).forward("block", [10, 10]) for n in (1, 2, 3, 4)] == [0.75, 1.375, 2, 2]
    assert [rates.when_busy(n).backward("head", [10]) for n in (1, 2, 3)] == [4, 5.5, 7]
    assert [rates.when_busy(n).optimizer(200) for n in (1, 2, 3)] == [0.75, 1.125, 1.5]
    assert rates.when_busy(2).forward("block", [30]) == pytest.approx(2.4)
    assert rates.when_busy(2).decode("block", 3, 10) == 2  # measured on all ranks only
    assert rates.when_busy(2) is rates.when_busy(2)
    assert rates.when_busy(3) is rates
    stated = StatedRates(this_machine(3), TINY, torch.float32)
    assert stated.when_busy(1) is stated


def test_a_pipe_in_place_of_a_profile_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe is not a file of measurements .*; measure again into a new file"):
        read_profiles(tmp_path / "pipe")


def test_a_file_keeps_what_was_measured_before(tmp_path):
    file = tmp_path / "profile.json"
    write_profile(file, Profile("one", {KEY: {1: ALONE, 2: MODEL}}, LINKS))
    write_profile(file, Profile("two", {KEY: {1: ModelProfile()}}))
    whole = Profile("one", {KEY: {1: ALONE, 2: MODEL}, "other": {1: ModelProfile()}}, LINKS)
    assert write_profile(file, Profile("one", {"other": {1: ModelProfile()}})) == whole
    found = read_profiles(file)
    assert found["one"] == whole
    assert found["two"].models == {KEY: {1: ModelProfile()}}
    file.write_text('{"format": 1, "profiles": {}}')
    with pytest.raises(DataError, match=r"profile.json: has format 1, not 2; measure again into a new file"):
        read_profiles(file)
    file.write_text("{}")
    with pytest.raises(
        DataError, match=r"profile.json is not a file of measurements .*; measure again into a new file"
    ):
        write_profile(file, Profile("one"))


def test_a_profile_lacks_what_was_not_measured_of_a_model():
    only_inference = ModelProfile(passes=MODEL.passes)
    order = Order((MeasuredModel(TINY.replace(n_layers=9), generates=False), MeasuredModel(TINY, trains=False)))
    whole = (MeasuredModel(TINY),)
    assert missing_models(order, None) == whole
    assert missing_models(order, Profile("one")) == whole
    assert missing_models(order, Profile("one", {KEY: {1: only_inference, 2: only_inference}})) == whole
    assert missing_models(order, Profile("one", {KEY: {2: MODEL}})) == ()
    trained = ModelProfile(passes=MODEL.passes, optimizer=MODEL.optimizer)
    generates = Order((MeasuredModel(TINY, trains=False),))
    assert missing_models(generates, Profile("one", {KEY: {2: trained}})) == whole  # and its training is kept


def test_the_number_of_blocks_does_not_matter_to_a_profile():
    assert model_key(TINY.replace(n_layers=7), "torch.float32") == KEY
    assert model_key(TINY.replace(is_critic=True), "torch.float32") != KEY
    assert model_key(TINY, "torch.bfloat16") != KEY


def test_a_shard_has_its_share_of_heads_and_intermediate_size():
    shard = shard_config(TINY, 2)
    assert (shard.n_q_heads, shard.n_kv_heads, shard.intermediate_size, shard.vocab_size) == (2, 1, 24, 25)
    assert shard.hidden_size == TINY.hidden_size
    assert shard_config(TINY, 4).n_kv_heads == 1
    assert shard_config(TINY, 3) is None


def test_a_tiny_model_is_measured():
    critic = TINY.replace(is_critic=True)
    shares = []
    profile = measure(
        [MeasuredModel(TINY), MeasuredModel(TINY.replace(n_layers=5)), MeasuredModel(critic, generates=False)],
        torch.device("cpu"),
        Sizes(tp=(1, 2, 3), passes=((1, 8), (2, 8)), widths=(2,), contexts=(4,)),
        seconds=0.1,
        advance=lambda what, share: shares.append(share),
    )
    assert set(profile.models) == {KEY, model_key(critic, "torch.float32")}
    assert set(profile.models[KEY]) == {1}
    found = profile.models[KEY][1]
    assert {(each.tp, each.n_sequences, each.length) for each in found.passes} == {
        (tp, *point) for tp in (1, 2) for point in ((1, 8), (2, 8))
    }
    assert sum(each.forward_block + each.forward_ends for each in found.passes) > 0
    assert {(each.tp, each.n_sequences) for each in found.decoding} == {(1, 2), (2, 2)}
    assert len(found.optimizer) == len(found.starts) == 2
    assert not profile.models[model_key(critic, "torch.float32")][1].decoding
    assert len(profile.links.host_copy) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1


def _job(n_ranks=2):
    config = (
        load_configuration("grpo", [], ["reward=math", "beta=0.1", "num_generations=4"]).with_placeholders().build()
    )
    graph = Graph.of(registry.get("algorithm", "grpo"), config)
    workload = Workload(8, Lengths.constant(30), 4, Lengths.constant(10))
    return PlannedJob.of(config, graph, dict.fromkeys(graph.roles, TINY), this_machine(n_ranks), workload)


def test_what_is_measured_for_a_job_follows_from_its_workload():
    order = order_for(_job(4), 9)
    assert [(model.trains, model.generates) for model in order.models] == [(True, True), (False, False)]
    assert order.seconds == 9
    assert order.sizes == Sizes((1, 2, 4), ((1, 40), (8, 160), (16, 40), (32, 40)), (1, 16, 32), (30, 40))


def test_a_job_takes_measured_rates_and_links():
    links = LinkProfile(point_to_point=((0, 1.0), (100, 3.0)))
    job = with_profile(_job(), Profile("one", {KEY: {1: ALONE, 2: MODEL}}, links), Path("profile.json"))
    assert job.machine.within_node == Link(50, 1)
    assert job.machine.host == this_machine(2).host
    assert job.rates["actor"].forward("block", [10, 10]) == 2
    assert job.rates["ref"].source == "profile.json (collectives, host copies stated)"
    alone, both = (job.costs.call("ref_inf", CallPlan(layout)) for layout in (Layout(), Layout(dp=2)))
    assert alone.seconds > 0
    assert alone.contention > 0
    assert both.contention == 0


def test_what_is_ordered_is_read_again(tmp_path):
    config = TINY.replace(
        rope=(None, RopeConfig(kind="linear", factor=2.0)),
        moe=MoEConfig(n_experts=4, top_k=2, layers=(1,)),
        sliding_window=(None, 8),
        extra=Extra(sizes=[1, 2], nested={"a": 1}),
    )
    order = Order((MeasuredModel(config, torch.bfloat16, trains=False), MeasuredModel(TINY)), Sizes(widths=(3,)), 7.0)
    order.write(tmp_path / "order.json")
    assert Order.read(tmp_path / "order.json") == order


def test_a_profile_of_this_machine_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "profile.json"
    assert known_profile(file, 2) is None
    write_profile(file, Profile(setting_of(torch.device("cpu"), 2, 1)))
    assert known_profile(file, 2) == Profile("CPU with 1 thread a rank, 2 ranks, torch " + torch.__version__)
    assert known_profile(file, 4) is None
