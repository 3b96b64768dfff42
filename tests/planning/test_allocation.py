"""Plans that `allocation` asks for, and runs that take them as if their keys had been typed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.cli.algorithm import load_configuration
from reallm.errors import ConfigError
from reallm.experiments.run import allocation
from reallm.experiments.run.allocation import with_allocation
from reallm.launch.job import Job
from reallm.planning.allocation import planned
from reallm.planning.configured_workload import configured_workload
from reallm.planning.job import PlannedJob
from reallm.planning.known_machines import known_machine, with_ranks
from reallm.plugins import registry
from tests.helpers.tiny_config import TINY

PPO = ("reward.functions=[math]", "ppo.gen.max_new_tokens=8", "dataset.train_bs_n_seqs=8", "ppo.ppo_n_minibatches=1")


def configured(algorithm: str, *keys: str) -> tuple[Any, Graph]:
    config = load_configuration(algorithm, [], keys).with_placeholders().build()
    return config, Graph.of(registry.get("algorithm", algorithm), config)


def job_of(config: Any, graph: Graph, n_ranks: int = 4) -> PlannedJob:
    models = {role: TINY.replace(is_critic=role == "critic") for role in graph.roles}
    workload = configured_workload(config, graph, prompt_lens="8").workload
    return PlannedJob.of(config, graph, models, with_ranks(known_machine("h100"), n_ranks), workload)


@pytest.fixture
def planned_for_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_planned_job", lambda config, graph, job: job_of(config, graph, job.size))


def test_one_layout_for_all_calls() -> None:
    config, graph = configured("ppo", *PPO, "allocation=d2p1m2")
    found = planned(config, job_of(config, graph))
    calls = [call.name for call in graph.calls if call.kind != "reward"]
    assert found.plan.assignments(graph) == [f"{call}.layout=tp2dp2" for call in calls]


def test_one_layout_that_does_not_fit_a_model_names_the_key() -> None:
    config, graph = configured("ppo", *PPO, "allocation=d1p4m1")
    with pytest.raises(ConfigError, match=r"allocation=d1p4m1: pp=4 stages are too many for a model of 2 blocks"):
        planned(config, job_of(config, graph))


def test_one_layout_that_needs_more_processes_than_there_are_is_refused() -> None:
    config, graph = configured("ppo", *PPO, "allocation=d8")
    with pytest.raises(ConfigError, match=r"layout=dp8 takes 8 processes, but 4 were started"):
        planned(config, job_of(config, graph))


def test_given_layouts_are_kept_and_the_rest_is_searched() -> None:
    keys = ("allocation=search", "actor_train.layout=dp1@1", "ref_inf.layout=dp1@1", "ref_inf.offload=true")
    config, graph = configured("ppo", *PPO, *keys)
    found = planned(config, job_of(config, graph, 2))
    assert set(keys[1:]) <= set(found.plan.assignments(graph))
    assert found.search is not None
    assert found.search.gain is None or found.search.gain >= 1


def test_a_run_takes_the_plan_as_if_its_keys_had_been_typed(planned_for_tiny: None) -> None:
    config, graph = configured("ppo", *PPO, "allocation=search")
    said: list[str] = []
    changed: Any = with_allocation(config, graph, Job(size=2, local_size=2), said.append)
    typed, _ = configured("ppo", *PPO, *said[0].removeprefix("allocation=search: ").split())
    assert Placement.of(changed, graph, 2) == Placement.of(typed, graph, 2)
    assert changed.actor_gen.layout is not None


def test_a_resumed_run_keeps_its_plan(planned_for_tiny: None) -> None:
    config, graph = configured("ppo", *PPO, "allocation=heuristic")
    job, said = Job(size=4, local_size=4), []
    changed = with_allocation(config, graph, job, said.append)
    assert said
    assert (
        with_allocation(replace(changed, allocation="search"), graph, job, said.append).actor_gen == changed.actor_gen
    )
    assert len(said) == 1


def test_an_algorithm_without_keys_for_its_calls_gets_one_layout(planned_for_tiny: None) -> None:
    config, graph = configured("sft", "allocation=search", "parallel.dp=4")
    said: list[str] = []
    changed: Any = with_allocation(config, graph, Job(size=4, local_size=4), said.append)
    parallel = changed.parallel
    assert parallel.dp * parallel.pp * parallel.tp == 4
    assert said == [f"allocation=search: parallel.dp={parallel.dp} parallel.pp={parallel.pp} parallel.tp={parallel.tp}"]


def test_manual_leaves_everything_as_it_is() -> None:
    config, graph = configured("ppo", *PPO, "actor_gen.layout=dp2")
    assert with_allocation(config, graph, Job(), print) is config
    assert planned(config, job_of(config, graph)).plan.calls["actor_gen"].layout.short == "dp2"
