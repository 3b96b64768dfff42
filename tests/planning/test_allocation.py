"""Plans that `allocation` asks for, and runs that take them as if their keys had been typed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.cli.algorithm import load_configuration
from reallm.errors import ConfigError
from reallm.experiments.run import planned_job
from reallm.experiments.run.allocation import with_allocation
from reallm.launch.job import Job
from reallm.planning.allocation import planned
from reallm.planning.configured_workload import configured_workload
from reallm.planning.job import PlannedJob
from reallm.planning.known_machines import known_machine, with_ranks
from reallm.planning.profiling.on_ranks import setting_here
from reallm.planning.profiling.profile import (
    DecodeTimes,
    ModelProfile,
    PassTimes,
    Profile,
    model_key,
    write_profile,
)
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
    monkeypatch.setattr(planned_job, "planned_model", lambda args, n_tokens: TINY.replace(is_critic=args.is_critic))


def prompts() -> list[int]:
    """The lengths of the prompts of a dataset."""
    return [10, 30]


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
    changed: Any = with_allocation(config, graph, Job(size=2, local_size=2), said.append, prompts)
    typed, _ = configured("ppo", *PPO, *said[0].removeprefix("allocation=search: ").split())
    assert Placement.of(changed, graph, 2) == Placement.of(typed, graph, 2)
    assert changed.actor_gen.layout is not None
    assert re.match(
        r"planned for this machine \(.*\), prompts of 20 tokens \(measured\), answers of 4 \(assumed\), times stated: "
        r"[\d.]+ times as fast as heuristic; reallm plan shows more$",
        said[1],
    )


def test_a_run_plans_for_the_machine_and_the_lengths_that_it_is_given(planned_for_tiny: None) -> None:
    keys = ("allocation=search", "plan.machine=h100", "plan.prompt_lens=700", "plan.answer_lens=7")
    config, graph = configured("ppo", *PPO, *keys)
    said: list[str] = []
    with_allocation(config, graph, Job(size=2, local_size=2), said.append, lambda: pytest.fail("reads the dataset"))
    assert said[1].startswith("planned for h100, prompts of 700 tokens (given), answers of 7 (given), times stated: ")
    for wrong, message in {
        "plan.machine=h10": "plan.machine=h10: not a known machine; did you mean",
        "plan.prompt_lens=many": "plan.prompt_lens=many: must be a number",
    }.items():
        config, graph = configured("ppo", *PPO, "allocation=search", wrong)
        with pytest.raises(ConfigError, match=message):
            with_allocation(config, graph, Job(size=2, local_size=2), print, prompts)


def test_a_run_takes_measured_times_of_its_machine_and_models(
    planned_for_tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "times.json"
    config, graph = configured("ppo", *PPO, "allocation=search", f"plan.profile={file}")
    job, said = Job(size=2, local_size=2), []

    def refused() -> str:
        with pytest.raises(ConfigError) as error:
            with_allocation(config, graph, job, print, prompts)
        return str(error.value).removeprefix(f"plan.profile={file}: ")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    remedy = f"measure them here, by reallm plan with --ranks 2 --profile {file}"
    assert refused() == f"there is no such file; measure times here, by reallm plan with --ranks 2 --profile {file}"
    write_profile(file, Profile("a machine"))
    assert refused() == f"has no times of this machine ({setting_here(2)}); {remedy}"
    write_profile(file, Profile(setting_here(2)))
    assert refused() == f"has no times, or not all, of the models of this run; {remedy}"
    measured = ModelProfile(
        passes=(PassTimes(1, 1, 10, 0.1, 0.1, 0.2, 0.2), PassTimes(1, 3, 10, 0.3, 0.3, 0.6, 0.6)),
        decoding=(DecodeTimes(1, 1, 10, 0.1, 0.1), DecodeTimes(1, 5, 10, 0.2, 0.2)),
        optimizer=((100, 0.1), (300, 0.2)),
        starts=((100, 0.1), (300, 0.2)),
    )
    models = [TINY, TINY.replace(is_critic=True)]
    profile = Profile(setting_here(2), {model_key(model, "torch.float32"): {2: measured} for model in models})
    write_profile(file, profile)
    with_allocation(config, graph, job, said.append, prompts)
    assert f"times {file} (collectives, point-to-point, host copies stated): " in said[1]


def test_a_resumed_run_keeps_its_plan(planned_for_tiny: None) -> None:
    config, graph = configured("ppo", *PPO, "allocation=heuristic")
    job, said = Job(size=4, local_size=4), []
    changed = with_allocation(config, graph, job, said.append, prompts)
    assert said
    assert (
        with_allocation(replace(changed, allocation="search"), graph, job, said.append, prompts).actor_gen
        == changed.actor_gen
    )
    assert len(said) == 1


def test_a_call_keeps_the_limit_on_its_tokens_that_it_is_given(planned_for_tiny: None) -> None:
    config, graph = configured("ppo", *PPO, "allocation=search", "actor_train.max_tokens_per_microbatch=64")
    said: list[str] = []
    changed: Any = with_allocation(config, graph, Job(size=2, local_size=2), said.append, prompts)
    assert changed.actor_train.max_tokens_per_microbatch == 64
    assert "actor_train.max_tokens_per_microbatch=64" in said[0].split()
    assert Placement.of(changed, graph, 2).max_tokens == {"actor_train": 64}


def test_a_resumed_run_says_if_its_plan_leaves_processes_idle(planned_for_tiny: None) -> None:
    layouts = [f"{call}.layout=dp2" for call in ("actor_gen", "ref_inf", "critic_inf", "actor_train", "critic_train")]
    config, graph = configured("ppo", *PPO, *layouts, "allocation=search", "parallel.dp=4")
    said: list[str] = []
    kept = with_allocation(replace(config, resume="runs/a"), graph, Job(size=4, local_size=4), said.append, prompts)
    assert kept.actor_gen == config.actor_gen
    assert said == [
        "note: the execution plan of this run takes 2 of 4 processes; add allocation=search to plan anew for 4"
    ]


def test_an_algorithm_without_keys_for_its_calls_gets_one_layout(planned_for_tiny: None) -> None:
    config, graph = configured("sft", "allocation=search", "parallel.dp=4")
    said: list[str] = []
    changed: Any = with_allocation(config, graph, Job(size=4, local_size=4), said.append, prompts)
    parallel = changed.parallel
    assert parallel.dp * parallel.pp * parallel.tp == 4
    assert said == [f"allocation=search: parallel.dp={parallel.dp} parallel.pp={parallel.pp} parallel.tp={parallel.tp}"]


def test_manual_leaves_everything_as_it_is() -> None:
    config, graph = configured("ppo", *PPO, "actor_gen.layout=dp2")
    assert with_allocation(config, graph, Job(), print, prompts) is config
    assert planned(config, job_of(config, graph)).plan.calls["actor_gen"].layout.short == "dp2"
