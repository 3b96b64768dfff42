"""Steps of PPO and GRPO on tiny float64 models under any plan: layouts, ranks and offload of each call."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.algorithms.timeline import Span
from reallm.builtin import reallm_algorithms
from reallm.config.args import CallArgs, ModelArgs, RewardArgs, SamplingArgs
from reallm.config.parallel import ParallelArgs
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.algorithms.grpo.steps import Rewards
from tests.algorithms.grpo.test_config import config as grpo_config
from tests.algorithms.ppo.test_config import config as ppo_config
from tests.algorithms.three_roles import OPTIMIZER, batch_of
from tests.helpers.tiny_config import TINY

STEPS = 2
CALLS = {
    "ppo": ("actor_gen", "rew_fn", "ref_inf", "critic_inf", "actor_inf", "actor_train", "critic_train"),
    "grpo": ("actor_gen", "rew_fn", "ref_inf", "actor_train"),
}
LAYOUTS = {1: ["dp1"], 2: ["dp2", "tp2", "pp2"], 3: ["dp3"], 4: ["dp4", "tp2pp2", "dp2tp2", "dp2pp2"]}
"""By the number of ranks."""


@dataclass(frozen=True)
class Plan:
    """Where the calls of an algorithm are computed; without layouts, by one process."""

    algorithm: str
    layouts: Mapping[str, str] = field(default_factory=dict)
    offload: tuple[str, ...] = ()
    async_steps: int = 0
    prefetch: tuple[str, ...] = ()

    @classmethod
    def draw(cls, algorithm: str, seed: int) -> Plan:
        """A random plan for four ranks, with offload of a third of the calls, half of them prefetched; every other one
        of GRPO samples ahead."""
        draw = random.Random(seed)

        def layout(call: str) -> str:
            n = draw.choice([1, 1, 2, 2, 3, 4])
            name = "dp1" if call == "rew_fn" else draw.choice(LAYOUTS[n])
            return f"{name}@{','.join(map(str, sorted(draw.sample(range(4), 1 if call == 'rew_fn' else n))))}"

        layouts = {call: layout(call) for call in CALLS[algorithm]}
        offload = tuple(name for name in layouts if name != "rew_fn" and draw.random() < 0.33)
        prefetch = tuple(name for name in offload if draw.random() < 0.5)
        return cls(algorithm, layouts, offload, seed % 2 if algorithm == "grpo" else 0, prefetch)

    @property
    def alone(self) -> Plan:
        """The same algorithm in one process."""
        return Plan(self.algorithm, async_steps=self.async_steps)

    def config(self) -> Any:
        """The algorithm's settings: a moving reference, and every call that it can have."""
        calls: dict[str, Any] = {
            name: CallArgs(layout, name in self.offload, name in self.prefetch) for name, layout in self.layouts.items()
        }
        shared: dict[str, Any] = {"keep_rollouts": 0, "parallel": ParallelArgs(zero=1), **calls}
        if self.algorithm == "ppo":
            ppo = {"ppo_n_minibatches": 2, "old_logprobs": "inference", "gen": SamplingArgs(max_new_tokens=5)}
            return ppo_config(ppo, reward=RewardArgs(functions=["tests.rewards:accuracy"]), **shared)
        return grpo_config(
            num_generations=4, beta=0.1, num_minibatches=2, gen=SamplingArgs(max_new_tokens=5), sync_ref_model=True,
            ref_model_sync_steps=2, ref_model_mixup_alpha=0.5,
            async_steps=self.async_steps, **shared,
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What a rank has after a few steps."""

    metrics: list[dict[str, float]]
    spans: list[list[Span]]
    """What all ranks did in each step."""
    sizes: list[dict[str, int]]
    """Bytes of each key that this rank's calls have written in each step."""
    placement: Placement


def train(rank: int, plan: Plan) -> Trained:
    """A few steps under a plan."""
    torch.set_num_threads(1)
    algorithm, made = reallm_algorithms()[plan.algorithm], plan.config()
    graph = Graph.of(algorithm, made)
    placement = Placement.of(made, graph, dist.get_world_size() if dist.is_initialized() else 1)
    roles: dict[str, Role] = {}
    meshes: dict[Any, Mesh] = {}
    for seed, name in enumerate(graph.roles):
        own = {one: meshes.setdefault(one, Mesh.of(one)) for one in placement.copies(name)} if plan.layouts else {}
        mesh = own[placement.homes[name]] if plan.layouts else None
        network = TINY.replace(is_critic=name == "critic")
        model = ReaLModel(network, dtype=torch.float64, seed=seed, mesh=mesh, zero=1).eval()
        is_trained_here = name in graph.trained_roles and (mesh is None or mesh.is_member)
        engine = TrainEngine(model, OPTIMIZER, 10, 40) if is_trained_here else None
        roles[name] = Role(model, engine, engine, ModelArgs(path=name), torch.float64, None, own)
    interfaces = {role: algorithm.interface_class(role)(made) for role in graph.roles}
    interfaces["reward_functions"] = Rewards()
    executor = GraphExecutor(graph, roles, interfaces, placement, plan.async_steps)
    sizes: list[dict[str, int]] = []
    for call in graph.calls:
        if call.kind != "train_step":
            note_sizes(interfaces[call.role], call.kind, sizes)
    metrics, spans = [], []
    for step in range(1, STEPS + 1):
        context = CallContext(None, 5, step, STEPS, 40, True, executor.weights_versions)  # type: ignore[arg-type]
        ahead = {later: batch_of(later) for later in executor.queue.missing(step, STEPS)}
        sizes.append({})
        found = executor.train(batch_of(step), context, ahead)
        metrics.append({name: value for name, value in found.items() if not name.endswith(("_s", "_gib"))})
        spans.append(executor.spans())
    return Trained(metrics, spans, sizes, placement)


def note_sizes(interface: Any, kind: str, sizes: list[dict[str, int]]) -> None:
    """Have an interface note the bytes of what it writes in the last of `sizes`."""
    compute = getattr(interface, kind)
    if hasattr(compute, "notes_sizes"):
        return

    def noted(*args: Any) -> NamedArray:
        found: NamedArray = compute(*args)
        sizes[-1] |= {name: value.nbytes for name, value in found.items()}
        return found

    noted.notes_sizes = True
    setattr(interface, kind, noted)


def train_all(rank: int, plans: Sequence[Plan]) -> list[Trained]:
    """A few steps under each of several plans."""
    return [train(rank, plan) for plan in plans]


def check_metrics(trained: Sequence[tuple[Plan, Sequence[Trained]]]) -> None:
    """Check that all ranks have the metrics of one process."""
    alone = {plan.async_steps: train(0, plan.alone) for plan, _ in trained}
    for plan, outcomes in trained:
        for found in outcomes:
            for step, expected in zip(found.metrics, alone[plan.async_steps].metrics, strict=True):
                assert step == pytest.approx(expected, rel=1e-6, abs=1e-7), plan  # log-probabilities are in float32
