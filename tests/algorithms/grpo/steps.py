"""Steps of GRPO on a tiny model in float64, without text: the reward is the share of even tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.builtin import reallm_algorithms
from reallm.config.args import CallArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.parallel import ParallelArgs
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.algorithms.grpo.test_config import config
from tests.algorithms.three_roles import OPTIMIZER, batch_of
from tests.helpers.tiny_config import TINY


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


@dataclass(frozen=True)
class Steps:
    """A policy with what its steps need."""

    executor: GraphExecutor
    interfaces: Mapping[str, Any]
    roles: Mapping[str, Role]

    @classmethod
    def of(
        cls, layouts: Mapping[str, str] | None = None, *, optimizer: OptimizerConfig = OPTIMIZER, **settings: Any
    ) -> Steps:
        """Steps with settings of the algorithm, and calls in layouts."""
        torch.set_num_threads(1)
        algorithm = reallm_algorithms()["grpo"]
        calls = {name: CallArgs(layout) for name, layout in (layouts or {}).items()}
        made = config(
            num_generations=4, gen=SamplingArgs(max_new_tokens=5), keep_rollouts=0, parallel=ParallelArgs(zero=1),
            **calls, **settings,
        )  # fmt: skip
        graph = Graph.of(algorithm, made)
        placement = Placement.of(made, graph, dist.get_world_size() if dist.is_initialized() else 1)
        interfaces = {role: algorithm.interface_class(role)(made) for role in graph.roles}
        roles: dict[str, Role] = {}
        meshes: dict[Any, Mesh] = {}
        for seed, name in enumerate(graph.roles):
            own = {one: meshes.setdefault(one, Mesh.of(one)) for one in placement.copies(name)} if layouts else {}
            mesh = own[placement.homes[name]] if layouts else None
            model = ReaLModel(TINY, dtype=torch.float64, seed=seed, mesh=mesh, zero=1).eval()
            is_here = name == "actor" and (mesh is None or mesh.is_member)
            engine = TrainEngine(model, optimizer, 10, 40) if is_here else None
            roles[name] = Role(model, engine, engine, replace(made.actor, path=name), torch.float64, None, own)
        interfaces["reward_functions"] = Rewards()
        return cls(GraphExecutor(graph, roles, interfaces, placement, made.async_steps), interfaces, roles)

    def train(self, first: int, last: int, total: int) -> list[dict[str, float]]:
        """Metrics of the steps from `first` to `last`, of so many in all."""
        metrics = []
        for step in range(first, last + 1):
            context = CallContext(None, 5, step, total, 40, True, self.executor.weights_versions)  # type: ignore[arg-type]
            ahead = {later: batch_of(later) for later in self.executor.queue.missing(step, total)}
            found = self.executor.train(batch_of(step), context, ahead)
            metrics.append({name: value for name, value in found.items() if not name.endswith(("_s", "_gib"))})
        return metrics
