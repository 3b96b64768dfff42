"""A run of `reallm ppo` whose roles are on different ranks gives the numbers of one process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from reallm.config.args import CallArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.experiments.run.runner import run
from reallm.launch.job import Job
from reallm.plugins import registry
from tests.experiments.checkpointing.test_resume import numbers
from tests.experiments.run.test_ppo import Runs
from tests.experiments.run.test_preferences_on_ranks import assert_same_numbers
from tests.helpers.ranks import on_ranks


def train(rank: int, config: Any) -> None:
    torch.set_num_threads(1)
    store = dist.PrefixStore(config.name, dist.distributed_c10d._get_default_store())
    run(config, "ppo", name="ppo", console=Console(file=io.StringIO()), job=Job(rank, 2, rank, 2, store))


def test_actor_and_critic_on_different_ranks_give_the_numbers_of_one_process(tmp_path: Path, checkpoint: Path) -> None:
    runs = Runs(tmp_path, checkpoint, registry.get("algorithm", "ppo"))
    settings: dict[str, Any] = {
        "n_valid": 2,
        # with a large eps, what AdamW does is smooth in the gradients, also where these are rounding noise
        "optimizer": OptimizerConfig(lr=1e-3, eps=1e-3, schedule="constant", warmup_steps=0),
        "reward": runs.reward_model(),
        "ppo": {"use_adaptive_kl_ctl": True, "adaptive_kl_horizon": 20.0},
    }
    whole = runs.run(runs.config(name="whole", **settings))
    of_critic, of_actor = CallArgs("dp1@1"), CallArgs("dp1@0")
    placed = {
        "actor_gen": CallArgs("dp2"),
        "actor_train": of_actor,
        "critic_inf": of_critic,
        "critic_train": of_critic,
        "ref_inf": CallArgs("dp1@0", offload=True),
        "rew_inf": CallArgs("dp1@1", offload=True),
    }
    on_ranks(2, train, runs.config(name="placed", timeline=True, **settings, **placed))
    assert_same_numbers(numbers(tmp_path / "runs" / "placed"), numbers(whole.run_dir))
    spans = [json.loads(line) for line in (tmp_path / "runs" / "placed" / "timeline.jsonl").read_text().splitlines()]
    assert {span["step"] for span in spans} == {1, 2}
    for kind, names in {
        "call": {"actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train"},
        "move": {"actor to dp2"},
        "offload": {"ref_inf", "rew_inf"},
        "reload": {"ref_inf", "rew_inf"},
    }.items():
        assert {span["name"] for span in spans if span["kind"] == kind} == names
    assert {span["rank"] for span in spans if span["name"] == "actor_gen"} == {0, 1}
    assert all(span["start"] <= span["end"] for span in spans)
