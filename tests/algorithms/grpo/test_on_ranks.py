"""A step of GRPO on two ranks, generation in another layout than training: the numbers of one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.builtin import reallm_algorithms
from reallm.config.args import CallArgs, SamplingArgs
from reallm.config.parallel import ParallelArgs
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.algorithms.grpo.test_config import config
from tests.algorithms.three_roles import OPTIMIZER, batch_of
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

STEPS = 2


class Rewards:
    """The share of even tokens of each answer, without text."""

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        counts = [len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
        sizes = [n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample]
        shares = [(1 - ids[n:] % 2).double().mean() for ids, n in zip(
            batch["input_ids"].split(sizes), batch["prompt_lens"].tolist(), strict=True)]  # fmt: skip
        seqlens = [(1,) * n for n in counts]
        return NamedArray(
            reward_parts=torch.stack(shares).float(), reward_given=torch.ones(len(shares), dtype=torch.bool)
        ).with_metadata(seqlens={"reward_parts": seqlens, "reward_given": seqlens})


def train(rank: int, layouts: Mapping[str, str]) -> list[dict[str, float]]:
    """Metrics of a few steps of the algorithm in float64."""
    torch.set_num_threads(1)
    algorithm = reallm_algorithms()["grpo"]
    settings: dict[str, Any] = {name: CallArgs(layout) for name, layout in layouts.items()}
    made = config(
        num_generations=4, beta=0.1, num_minibatches=2, gen=SamplingArgs(max_new_tokens=5), keep_rollouts=0,
        parallel=ParallelArgs(zero=1), **settings,
    )  # fmt: skip
    graph = Graph.of(algorithm, made)
    placement = Placement.of(made, graph, dist.get_world_size() if dist.is_initialized() else 1)
    interfaces = {role: algorithm.interface_class(role)(made) for role in ("actor", "ref")}
    roles: dict[str, Role] = {}
    meshes: dict[Any, Mesh] = {}
    for seed, name in enumerate(("actor", "ref")):
        own = {one: meshes.setdefault(one, Mesh.of(one)) for one in placement.copies(name)} if layouts else {}
        mesh = own[placement.homes[name]] if layouts else None
        model = ReaLModel(TINY, dtype=torch.float64, seed=seed, mesh=mesh, zero=1).eval()
        is_here = name == "actor" and (mesh is None or mesh.is_member)
        engine = TrainEngine(model, OPTIMIZER, 10, 40) if is_here else None
        roles[name] = Role(model, engine, engine, replace(made.actor, path=name), torch.float64, None, own)
    executor = GraphExecutor(graph, roles, {**interfaces, "reward_functions": Rewards()}, placement)
    metrics = []
    for step in range(1, STEPS + 1):
        context = CallContext(None, 5, step, STEPS, 40, True, executor.weights_versions)  # type: ignore[arg-type]
        found = executor.train(batch_of(step), context)
        metrics.append({name: value for name, value in found.items() if not name.endswith(("_s", "_gib"))})
    return metrics


@pytest.fixture(scope="module")
def alone() -> list[dict[str, float]]:
    return train(0, {})


@pytest.mark.parametrize(
    "layouts",
    [
        {"actor_gen": "dp2", "rew_fn": "dp1@1", "ref_inf": "dp1@1", "actor_train": "tp2"},
        {"actor_gen": "dp1@1", "rew_fn": "dp1@1", "ref_inf": "dp1@0", "actor_train": "dp1@0"},
    ],
    ids=["everywhere", "apart"],
)
def test_metrics_are_those_of_one_process(layouts: dict[str, str], alone: list[dict[str, float]]) -> None:
    assert alone[0]["train/reward_std"] > 0
    for found in on_ranks(2, train, layouts):
        for step, expected in zip(found, alone, strict=True):
            assert step == pytest.approx(expected, rel=1e-6, abs=1e-7)  # log-probabilities are kept in float32
