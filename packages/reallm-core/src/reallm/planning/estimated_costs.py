"""`EstimatedCosts`: the costs of a run's calls, moves and copies, from rates, box arithmetic and traced shapes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Transfer
from reallm.model.config import ReaLModelConfig
from reallm.parallel.layout import Layout
from reallm.planning.call_times import CallTimes
from reallm.planning.cost_settings import CostSettings
from reallm.planning.costs import CallCost, MemoryItems, MoveCost
from reallm.planning.data_bytes import data_bytes
from reallm.planning.execution_plan import CallPlan
from reallm.planning.machine import Machine
from reallm.planning.memory import ModelMemory
from reallm.planning.rates import Rates
from reallm.planning.sequences import Sequences
from reallm.planning.stated_rates import StatedRates
from reallm.planning.workload import Workload
from reallm.reallocation.volume import volume
from reallm.specs import ModelFunctionCall


class EstimatedCosts:
    """Costs of the calls of a graph in any layouts; see `CostModel`.

    Args:
        graph: the calls.
        models: the architecture of each role's model.
        machine: where they are computed.
        workload: what a step computes.
        settings: dtypes, optimizers and micro-batches.
        rates: times of the pieces of each role's model; by default from the machine's stated figures.
    """

    def __init__(
        self,
        graph: Graph,
        models: Mapping[str, ReaLModelConfig],
        machine: Machine,
        workload: Workload,
        settings: CostSettings,
        rates: Mapping[str, Rates] | None = None,
    ) -> None:
        self._machine, self._workload, self._settings, self._models = machine, workload, settings, models
        self._calls = {call.name: call for call in graph.calls}
        self._sequences = Sequences(workload)
        self.rates: dict[str, Rates] = {}
        """Times of the pieces of each role's model."""
        self._memories: dict[str, ModelMemory] = {}
        for role in graph.roles:
            of_role = settings.roles[role]
            stated = StatedRates(machine, models[role], of_role.dtype, of_role.optimizer)
            self.rates[role] = (rates or {}).get(role, stated)
            self._memories[role] = ModelMemory(
                models[role], of_role, machine, self._sequences, settings.zero, settings.sequence_parallel
            )
        self.call = lru_cache(maxsize=None)(self._call)
        self.move = lru_cache(maxsize=None)(self._move)
        self.host_copy = lru_cache(maxsize=None)(self._host_copy)
        self.memory = lru_cache(maxsize=None)(self._memory)
        self._seconds = lru_cache(maxsize=None)(self._uncached_seconds)

    def _call(self, name: str, plan: CallPlan) -> CallCost:
        """The time of a call on its ranks, all of which begin and end together."""
        # what is on other nodes, in the same way, takes as long
        layout = plan.layout
        first_of_node = min(layout.ranks) // self._machine.ranks_per_node * self._machine.ranks_per_node
        if first_of_node:
            layout = dataclasses.replace(layout, ranks=tuple(rank - first_of_node for rank in layout.ranks))
        return self._seconds(name, layout, plan.max_tokens)

    def _uncached_seconds(self, name: str, layout: Layout, max_tokens: int | None) -> CallCost:
        call = self._calls[name]
        if call.kind == "reward":
            seconds = self._settings.reward_seconds.get(name, 0.0) * self._workload.n_sequences
            return CallCost(seconds / layout.dp)
        rates, n_of_node = self.rates[call.role], self._machine.ranks_per_node
        n_busy = max(Counter(map(self._machine.node, layout.ranks)).values())
        alone, crowded = rates.when_busy(n_busy), rates.when_busy(n_of_node)
        cost = self._with_rates(call, layout, max_tokens, alone)
        if crowded is alone:
            return cost
        contention = self._with_rates(call, layout, max_tokens, crowded).seconds - cost.seconds
        return dataclasses.replace(cost, contention=max(0.0, contention))

    def _with_rates(self, call: ModelFunctionCall, layout: Layout, max_tokens: int | None, rates: Rates) -> CallCost:
        times = self._times(call.role, layout, rates)
        if call.kind == "generate":
            return times.generate(self._memories[call.role].most_decoded(layout))
        max_tokens = max_tokens or self._settings.max_tokens_of(call)
        return times.train_step(max_tokens) if call.kind == "train_step" else times.inference(max_tokens)

    def _times(self, role: str, layout: Layout, rates: Rates) -> CallTimes:
        return CallTimes(
            self._models[role],
            layout,
            rates,
            self._settings.roles[role],
            self._sequences,
            self._settings.zero,
            self._settings.sequence_parallel,
            overlaps=self._machine.device == "cuda",
        )

    def _move(self, role: str, source: Layout, target: Layout) -> MoveCost:
        """The time to bring the weights of a role from the home to a copy."""
        size = self._settings.roles[role].dtype.itemsize
        sent = volume(self._models[role], source, target)
        if not sent.total:
            return MoveCost(0.0, 0)
        link = self._machine.link((*source.ranks, *target.ranks))
        busiest = int(size * sent.busiest)
        return MoveCost(link.seconds(busiest), size * sent.total, busiest)

    def data(self, transfer: Transfer) -> MoveCost:
        """The time to send outputs of a call from one rank to another."""
        n_bytes = data_bytes(transfer.keys, self._workload)
        return MoveCost(self._machine.link((transfer.source, transfer.target)).seconds(n_bytes), n_bytes, n_bytes)

    def _host_copy(self, role: str, layout: Layout, *, with_optimizer: bool) -> MoveCost:
        """The time to bring a copy of a role's model to host memory, or back; bytes of one rank."""
        items = self._memories[role].items("train_step" if with_optimizer else "inference", layout, 1)
        return MoveCost(self.rates[role].host_copy(items.kept), items.kept, items.kept)

    def token_limits(self, name: str) -> tuple[int | None, ...]:
        """The configured limit, half of it, and so on, as long as the longest sequence is within it.

        Of calls that have a limit of their own, and of those that are none of micro-batches, only the configured one;
        also of the training of experts whose load is balanced by each micro-batch.
        """
        call = self._calls[name]
        if call.kind in ("generate", "reward") or name in self._settings.max_tokens:
            return (None,)
        if call.kind == "train_step" and self._models[call.role].moe is not None:
            return (None,)
        limits: list[int | None] = [None]
        limit = self._settings.max_tokens_of(call) // 2
        while limit >= self._sequences.longest:
            limits.append(limit)
            limit //= 2
        return tuple(limits)

    def _memory(self, name: str, plan: CallPlan) -> MemoryItems:
        """Bytes on a rank of the layout, the fullest, of the copy that a call uses."""
        call = self._calls[name]
        if call.kind == "reward":
            return MemoryItems(0)
        max_tokens = plan.max_tokens or self._settings.max_tokens_of(call)
        return self._memories[call.role].items(call.kind, plan.layout, max_tokens)
