"""The work of the benchmark of execution plans: PPO and GRPO on random weights, under any plan, on some ranks."""

from __future__ import annotations

import dataclasses
import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.role import Role
from reallm.algorithms.timeline import Span
from reallm.builtin import reallm_algorithms
from reallm.config.args import ModelArgs, RewardArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.config import ReaLModelConfig
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.find_machine import find_machine
from reallm.planning.job import PlannedJob
from reallm.planning.profiling.measure import measure
from reallm.planning.profiling.use import order_for
from reallm.planning.workload import Lengths, Workload
from reallm.training.engine import TrainEngine
from reallm_datasets.config import PromptOnlyDatasetConfig

MODEL = ReaLModelConfig(
    n_layers=4, hidden_size=256, n_q_heads=8, n_kv_heads=4, head_dim=32, intermediate_size=768, vocab_size=2048,
    max_positions=1024,
)  # fmt: skip
CRITIC = MODEL.replace(n_layers=2, is_critic=True)
PROMPTS = tuple(range(16, 80, 4))
"""Lengths of the prompts of a step."""
MAX_NEW_TOKENS = 32
MAX_TOKENS = 512
"""Most tokens of a micro-batch."""
TIMED_STEPS = 1
OPTIMIZER = OptimizerConfig(lr=1e-6, schedule="constant")
PROFILE = "profile"
"""The way of a rank that measures instead of training."""


@dataclass(frozen=True)
class Work:
    """What ranks are given: an algorithm, and plans by their names."""

    algorithm: str
    plans: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Name of a plan -> the layout of each call."""
    profile_seconds: float = 60.0

    @property
    def config(self) -> Any:
        """The algorithm's settings."""
        algorithm = reallm_algorithms()[self.algorithm]
        reward = RewardArgs(functions=["plans_work:reward"])
        dataset = PromptOnlyDatasetConfig(train_path="prompts.jsonl", train_bs_n_seqs=len(PROMPTS))
        made = algorithm.config_class()(actor=ModelArgs(path="actor"), reward=reward, dataset=dataset)
        shared = {"optimizer": OPTIMIZER, "max_tokens_per_microbatch": MAX_TOKENS, "keep_rollouts": 0}
        sampling = SamplingArgs(max_new_tokens=MAX_NEW_TOKENS)
        if self.algorithm == "grpo":
            return dataclasses.replace(made, **shared, gen=sampling, num_generations=4, beta=0.1)
        ppo = dataclasses.replace(made.ppo, gen=sampling, ppo_n_minibatches=2)
        return dataclasses.replace(made, **shared, ppo=ppo, critic=dataclasses.replace(made.critic, path="critic"))

    @property
    def graph(self) -> Graph:
        """Its calls."""
        return Graph.of(reallm_algorithms()[self.algorithm], self.config)

    @property
    def models(self) -> dict[str, ReaLModelConfig]:
        """The architecture of each role: the critic is smaller than the others."""
        return {role: CRITIC if role == "critic" else MODEL for role in self.graph.roles}

    @property
    def workload(self) -> Workload:
        """What a step computes: no answer ends before it is as long as allowed."""
        config = self.config
        n_minibatches = config.ppo.ppo_n_minibatches if self.algorithm == "ppo" else config.num_minibatches
        answers = Lengths.constant(MAX_NEW_TOKENS)
        return Workload(len(self.prompts), Lengths.of(self.prompts), config.n_answers, answers, n_minibatches)

    @property
    def prompts(self) -> tuple[int, ...]:
        """Lengths of the prompts of a step: fewer if each has several answers."""
        return PROMPTS[:: self.config.n_answers]

    def job(self, n_ranks: int) -> PlannedJob:
        """What is planned, on this machine."""
        return PlannedJob.of(self.config, self.graph, self.models, find_machine(n_ranks=n_ranks), self.workload)

    def plan(self, name: str) -> ExecutionPlan:
        """A plan, by its name."""
        return ExecutionPlan({call: CallPlan(Layout.parse(text)) for call, text in self.plans[name].items()})


class Rewards:
    """The share of even tokens of each answer, without text."""

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """One part of a reward for each answer."""
        seqlens = batch.metadata["seqlens"]["input_ids"]
        sizes = [n for sample in seqlens for n in sample]
        parts = zip(batch["input_ids"].split(sizes), batch["prompt_lens"].tolist(), strict=True)
        shares = torch.stack([(1 - ids[n:] % 2).float().mean() for ids, n in parts])
        given = [(1,) * len(sample) for sample in seqlens]
        return NamedArray(reward_parts=shares, reward_given=torch.ones(len(shares), dtype=torch.bool)).with_metadata(
            seqlens={"reward_parts": given, "reward_given": given}
        )


def make(way: str, work: Work) -> Callable[[], Any]:
    """What a rank does: measure, or train some steps under a plan, of which each rank returns the spans."""
    if way == PROFILE:
        return lambda: _profile(work)
    return lambda: _train(work, way.partition(" ")[2])


def _profile(work: Work) -> Any:
    order = order_for(work.job(dist.get_world_size()))
    return measure(order.models, torch.device("cpu"), order.sizes, seconds=work.profile_seconds)


def _train(work: Work, name: str) -> list[tuple[float, list[Span]]]:
    """Seconds and spans of the timed steps."""
    config, graph = work.config, work.graph
    placement = work.plan(name).placement(graph, dist.get_world_size())
    algorithm = reallm_algorithms()[work.algorithm]
    roles: dict[str, Role] = {}
    for seed, role in enumerate(graph.roles):
        own = {layout: _mesh(layout) for layout in placement.copies(role)}
        home = own[placement.homes[role]]
        model = ReaLModel(work.models[role], seed=seed, mesh=home, zero=1).eval()
        trains = role in graph.trained_roles and home.is_member
        engine = TrainEngine(model, OPTIMIZER, 10**6, MAX_TOKENS) if trains else None
        roles[role] = Role(model, engine, engine, ModelArgs(path=role), torch.float32, None, own)
    interfaces = {role: algorithm.interface_class(role)(config) for role in graph.roles}
    executor = GraphExecutor(graph, roles, {**interfaces, "reward_functions": Rewards()}, placement)
    timed = []
    for step in range(1, 2 + TIMED_STEPS):
        context = CallContext(None, 5, step, 100, MAX_TOKENS, True, executor.weights_versions)  # type: ignore[arg-type]
        dist.barrier()
        executor.train(_batch(work, step), context)
        spans = executor.spans()
        timed.append((max(span.end for span in spans) - min(span.start for span in spans), spans))
    del executor, roles
    gc.collect()
    return timed[1:]


@cache
def _mesh(layout: Layout) -> Mesh:
    """One for all plans: the groups of a job are never freed."""
    return Mesh.of(layout)


def _batch(work: Work, step: int) -> NamedArray:
    draw = torch.Generator().manual_seed(step)
    samples = []
    for n in work.prompts:
        tokens = torch.randint(MODEL.vocab_size, (n,), generator=draw)
        samples.append(NamedArray(prompt_ids=tokens).with_metadata(seqlens={"prompt_ids": [[n]]}, ids=[f"{step}-{n}"]))
    return gather(samples)


def median_step(steps: list[tuple[float, list[Span]]]) -> float:
    """The median time of some steps."""
    return statistics.median(seconds for seconds, _ in steps)


def call_times(steps: list[tuple[float, list[Span]]]) -> dict[str, float]:
    """Seconds of each call, from its last rank's start to its end, as the median over steps."""
    found: dict[str, list[float]] = {}
    for _, spans in steps:
        calls = {span.name for span in spans if span.kind == "call"}
        for call in calls:
            own = [span for span in spans if span.kind == "call" and span.name == call]
            found.setdefault(call, []).append(max(one.end for one in own) - max(one.start for one in own))
    return {call: statistics.median(times) for call, times in found.items()}
