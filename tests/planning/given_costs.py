"""Costs that are given as numbers, and a graph like that of PPO, for tests of plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Transfer
from reallm.parallel.layout import Layout
from reallm.planning.costs import CallCost, MemoryItems, MoveCost
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.machine import Link, Machine
from reallm.specs import ModelFunctionCall

CALLS = (
    ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), ("input_ids", "logprobs")),
    ModelFunctionCall("ref_inf", "ref", "inference", ("input_ids",), ("ref_logprobs",)),
    ModelFunctionCall("critic_inf", "critic", "inference", ("input_ids",), ("values",)),
    ModelFunctionCall("actor_train", "actor", "train_step", ("input_ids", "logprobs", "ref_logprobs", "values")),
    ModelFunctionCall("critic_train", "critic", "train_step", ("input_ids", "logprobs", "ref_logprobs", "values")),
)
PPO = Graph.from_calls(CALLS)
SECONDS = {"actor_gen": 8.0, "ref_inf": 2.0, "critic_inf": 2.0, "actor_train": 12.0, "critic_train": 12.0}


@dataclass(frozen=True)
class GivenCosts:
    """Costs from numbers: a call takes its seconds on one rank, and on more the less, as `speedup` says."""

    seconds: Mapping[str, float] = field(default_factory=lambda: SECONDS)
    """Seconds on one rank, by call."""
    exponent: Mapping[str, float] = field(default_factory=dict)
    """By call, the power of the number of ranks that a call is faster by: 1 for perfect scaling, the default."""
    move_seconds: float = 0.0
    data_seconds: float = 0.0
    host_seconds: float = 0.0
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the parameters of a whole model, by role; the optimizer of a trained one takes four times as much."""
    activations: int = 0
    contention: float = 0.0
    """Share of its time that a call takes longer while all other ranks compute."""
    limits: tuple[int | None, ...] = (None,)
    """Most tokens of micro-batches that inference and training may be given. None is 8, all that a rank has: with 2,
    there are four micro-batches."""
    bubble: float = 0.0
    """Share of its time for which each stage but the first leaves a call of a single micro-batch idle."""

    def call(self, name: str, plan: CallPlan) -> CallCost:
        """The time of a call."""
        seconds, n = self.seconds[name] / plan.layout.size ** self.exponent.get(name, 1.0), _n_microbatches(plan)
        bubble = self.bubble * seconds * (plan.layout.pp - 1) / n
        return CallCost(seconds * (1 + 0.01 * (n - 1)), 0.0, bubble, n, contention=self.contention * seconds)

    def move(self, role: str, source: Layout, target: Layout) -> MoveCost:
        """The time of any move of weights."""
        return MoveCost(self.move_seconds, 2, 1)

    def data(self, transfer: Transfer) -> MoveCost:
        """The time of a message."""
        return MoveCost(self.data_seconds, 1)

    def host_copy(self, role: str, layout: Layout, *, with_optimizer: bool) -> MoveCost:
        """The time of a copy to host memory."""
        return MoveCost(self.host_seconds * (5 if with_optimizer else 1), 1)

    def token_limits(self, name: str) -> tuple[int | None, ...]:
        """The limits on tokens of micro-batches."""
        return (None,) if name == "actor_gen" else self.limits

    def memory(self, name: str, plan: CallPlan) -> MemoryItems:
        """Bytes on a rank: parameters are split by tp and pp, the optimizer by dp as well."""
        call = next(one for one in CALLS if one.name == name)
        split = plan.layout.tp * plan.layout.pp
        n_bytes = self.parameters.get(call.role, 0) // split
        if call.kind != "train_step":
            return MemoryItems(n_bytes, activations=self.activations // _n_microbatches(plan))
        activations = self.activations // _n_microbatches(plan)
        return MemoryItems(n_bytes, n_bytes, 4 * n_bytes // plan.layout.dp, activations)


def _n_microbatches(plan: CallPlan) -> int:
    return 8 // (plan.max_tokens or 8)


def machine(n_ranks: int, memory: int = 2**40, ranks_per_node: int = 8) -> Machine:
    """A machine of which only ranks and memory count."""
    link, per_node = Link(1e9, 0.0), min(n_ranks, ranks_per_node)
    return Machine("given", n_ranks // per_node, per_node, memory, 2**40, 1e12, 1e12, link, link, link)


def plan_of(offload: tuple[str, ...] = (), prefetch: tuple[str, ...] = (), **layouts: str) -> ExecutionPlan:
    """The plan with these layouts."""
    return ExecutionPlan(
        {
            name: CallPlan(Layout.parse(text), name in offload, prefetch=name in prefetch)
            for name, text in layouts.items()
        }
    )
