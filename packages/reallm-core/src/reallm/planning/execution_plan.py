"""`ExecutionPlan`: where and how each call of a graph is computed, as a value. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.parallel.layout import Layout


@dataclass(frozen=True)
class CallPlan:
    """Where and how one call is computed."""

    layout: Layout
    """For a reward, which has no model, only the ranks count."""
    offload: bool = False
    """Whether the copy of the model that it uses is moved to host memory after it."""
    max_tokens: int | None = None
    """Most tokens of a micro-batch; None: as configured."""
    prefetch: bool = False
    """Whether that copy comes back from host memory beside the call before this one."""


@dataclass(frozen=True)
class ExecutionPlan:
    """Where and how each call of a graph is computed: layouts, ranks, micro-batches, offload.

    What is moved between calls follows from it, see `placement`.
    """

    calls: Mapping[str, CallPlan]
    """By the name of the call."""

    def placement(self, graph: Graph, n_ranks: int, bases: Mapping[str, str] | None = None) -> Placement:
        """The placement that this plan means in a job of so many ranks; see `shared_bases` for `bases`.

        Raises:
            ConfigError: a layout needs more ranks than there are, or is not possible for its call.
        """
        layouts = {name: one.layout for name, one in self.calls.items()}
        offloaded = frozenset(name for name, one in self.calls.items() if one.offload)
        prefetched = frozenset(name for name, one in self.calls.items() if one.prefetch)
        return Placement.from_layouts(graph, layouts, n_ranks, offloaded, prefetched, bases)

    def assignments(self, graph: Graph) -> list[str]:
        """The keys of a configuration that ask for this plan: `actor_gen.layout=dp4`, `ref_inf.offload=true`."""
        found = []
        for call in graph.calls:
            one = self.calls[call.name]
            if call.kind != "reward" or one.layout != Layout():  # where it is without a layout
                found.append(f"{call.name}.layout={self.layout_text(graph, call.name)}")
            if one.offload:
                found.append(f"{call.name}.offload=true")
            if one.prefetch:
                found.append(f"{call.name}.prefetch=true")
            if one.max_tokens is not None:
                found.append(f"{call.name}.max_tokens_per_microbatch={one.max_tokens}")
        return found

    def layout_text(self, graph: Graph, call: str) -> str:
        """The layout of a call as its key has it: a role that is trained is sharded whether that says so or not."""
        one, layout = next(each for each in graph.calls if each.name == call), self.calls[call].layout
        trained = (self.calls[each.name].layout for each in graph.train_calls if each.role == one.role)
        return (layout.without_fsdp if layout in trained else layout).short
