"""`Candidates`: the layouts that a search tries for each call, and the ranks where it may place them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reallm.algorithms.graph import Graph
from reallm.errors import ConfigError
from reallm.parallel.layout import Layout
from reallm.planning.costs import CostModel, MemoryItems
from reallm.planning.execution_plan import CallPlan
from reallm.planning.machine import Machine
from reallm.specs import ModelFunctionCall
from reallm.training.memory import size_text

Fits = Callable[[str, Layout], None]
"""Function of a call's name and a layout that raises a ConfigError if the call cannot be computed in it."""


@dataclass(frozen=True)
class Candidates:
    """What may be chosen for each call: a plan on the first ranks of its size, and where these ranks may begin.

    Sets of ranks are aligned: powers of two that begin at a multiple of their size, within a node or of whole nodes,
    and all ranks of the job.
    """

    shapes: Mapping[str, tuple[CallPlan, ...]]
    """By call; of a call whose plan is given, that alone."""
    starts: Mapping[int, tuple[int, ...]]
    """First ranks of the sets of each size."""
    given: frozenset[str]
    """The calls whose plan is given."""

    @classmethod
    def of(
        cls,
        graph: Graph,
        costs: CostModel,
        machine: Machine,
        given: Mapping[str, CallPlan] | None = None,
        fits: Fits = lambda call, layout: None,
        *,
        bases: Mapping[str, str] | None = None,
        saving_memory: bool = False,
    ) -> Candidates:
        """The candidates for the calls of a graph on a machine.

        Of the layouts on as many ranks, those stay that are the best in time, in memory during the call or in memory
        that is kept, for some call to the role: a layout that suits one call may save another one a move of weights.
        In each, a call has the fastest micro-batches with which it fits into memory alone: in a pipeline often smaller
        ones than are configured, which leave its stages idle for a shorter time.

        Args:
            graph: the graph.
            costs: times and sizes of calls.
            machine: where they are computed.
            given: plans of calls that are not to be changed.
            fits: raises an error for layouts that are not possible.
            bases: role -> the trained role whose base model it has: it may be computed where that one is trained.
            saving_memory: whether to try micro-batches too that are slower, and take less memory.

        Raises:
            ConfigError: there is no layout in which a call fits into memory; names it, and what takes the most.
        """
        given = given or {}
        starts = aligned_starts(machine)
        sizes: dict[str, set[tuple[int, int, int]]] = {}
        trained: dict[str, list[tuple[int, int, int]]] = {}
        for call in graph.train_calls:
            if call.name in given and given[call.name].layout.size in starts:
                layout = given[call.name].layout
                trained[call.role] = [(layout.dp, layout.tp, layout.pp)]
        for call in graph.calls:
            if call.kind == "reward" or call.name in given:
                continue
            best = _best_sizes(call, costs, machine, starts, fits, saving_memory=saving_memory)
            sizes.setdefault(call.role, set()).update(best)
            if call.kind == "train_step":
                trained[call.role] = best
        for role, of_base in (bases or {}).items():
            sizes.setdefault(role, set()).update(trained.get(of_base, ()))
        found: dict[str, tuple[CallPlan, ...]] = {}
        for call in graph.calls:
            if call.name in given:
                found[call.name] = (given[call.name],)
            elif call.kind == "reward":
                found[call.name] = (CallPlan(Layout()),)
            else:
                layouts = [_layout(call, *one) for one in sorted(sizes[call.role])]
                found[call.name] = tuple(
                    plan
                    for layout in layouts
                    if _is_possible(call, layout, fits)
                    for plan in _micro_batches(call, layout, costs, machine, saving_memory=saving_memory)
                )
        return cls(found, starts, frozenset(given))

    def placed(self, call: str) -> list[CallPlan]:
        """All plans of a call."""
        return [at(shape, start) for shape in self.shapes[call] for start in self.starts_of(call, shape)]

    def starts_of(self, call: str, shape: CallPlan) -> tuple[int, ...]:
        """Where the ranks of a shape may begin."""
        return (shape.layout.ranks[0],) if call in self.given else self.starts[shape.layout.size]


def at(shape: CallPlan, start: int) -> CallPlan:
    """A plan on the ranks from a first one on."""
    if shape.layout.ranks[0] == start:
        return shape
    return replace(shape, layout=replace(shape.layout, ranks=tuple(range(start, start + shape.layout.size))))


def aligned_starts(machine: Machine) -> dict[int, tuple[int, ...]]:
    """First ranks of the aligned sets of ranks, by their size."""
    per_node, n_ranks = machine.ranks_per_node, machine.n_ranks
    found: dict[int, tuple[int, ...]] = {}
    size = 1
    while size < per_node:
        of_node = range(0, per_node - size + 1, size)
        found[size] = tuple(node * per_node + start for node in range(machine.n_nodes) for start in of_node)
        size *= 2
    n_nodes = 1
    while n_nodes <= machine.n_nodes:
        size = n_nodes * per_node
        found[size] = tuple(range(0, n_ranks - size + 1, size))
        n_nodes *= 2
    found[n_ranks] = (0,)
    return found


def splits(size: int, ranks_per_node: int) -> list[tuple[int, int, int]]:
    """Sizes `dp`, `tp`, `pp` whose product is a number of ranks; the ranks of `tp` are on one node."""
    divisors = [one for one in range(1, size + 1) if size % one == 0]
    limit = size if size <= ranks_per_node else ranks_per_node
    return [
        (size // (tp * pp), tp, pp)
        for tp in divisors
        if tp <= limit and (size <= ranks_per_node or ranks_per_node % tp == 0)
        for pp in divisors
        if size % (tp * pp) == 0
    ]


def _best_sizes(
    call: ModelFunctionCall,
    costs: CostModel,
    machine: Machine,
    starts: Mapping[int, Sequence[int]],
    fits: Fits,
    *,
    saving_memory: bool,
) -> list[tuple[int, int, int]]:
    """Sizes `dp`, `tp`, `pp` of the layouts of a call that are not worse than another one on as many ranks."""
    found: list[tuple[int, int, int]] = []
    least: tuple[int, CallPlan, MemoryItems] | None = None
    refused: ConfigError | None = None
    for size in starts:
        points: list[tuple[tuple[float, int, int], tuple[int, int, int]]] = []
        for sizes in splits(size, machine.ranks_per_node):
            layout = _layout(call, *sizes)
            try:
                fits(call.name, layout)
            except ConfigError as error:
                refused = error
                continue
            plans = _micro_batches(call, layout, costs, machine, saving_memory=saving_memory)
            for plan in plans:
                memory, seconds = costs.memory(call.name, plan), costs.call(call.name, plan).seconds
                points.append(((seconds, memory.in_call, memory.kept), sizes))
            if not plans:
                plan = CallPlan(layout, max_tokens=costs.token_limits(call.name)[-1])
                memory = costs.memory(call.name, plan)
                if least is None or memory.in_call < least[0]:
                    least = (memory.in_call, plan, memory)
        best = [sizes for point, sizes in points if not any(_is_worse(point, other) for other, _ in points)]
        found += dict.fromkeys(best)
    if not found:
        if least is None:
            assert refused is not None
            raise refused
        raise ConfigError(_too_large(call, machine, least[1], least[2]))
    return found


def _is_worse(point: tuple[float, int, int], other: tuple[float, int, int]) -> bool:
    return point != other and all(mine >= its for mine, its in zip(point, other, strict=True))


def _layout(call: ModelFunctionCall, dp: int, tp: int, pp: int) -> Layout:
    return Layout(dp, pp, tp, fsdp=call.kind == "train_step")


def _is_possible(call: ModelFunctionCall, layout: Layout, fits: Fits) -> bool:
    try:
        fits(call.name, layout)
    except ConfigError:
        return False
    return True


def _micro_batches(
    call: ModelFunctionCall, layout: Layout, costs: CostModel, machine: Machine, *, saving_memory: bool
) -> list[CallPlan]:
    """The plans of a call in a layout that fit into memory alone, with micro-batches of different sizes.

    The fastest, and to save memory those than which no other is both as fast and as small. Without a pipeline the
    largest micro-batches are the fastest.
    """
    limits = costs.token_limits(call.name)
    plans = [CallPlan(layout, max_tokens=limit) for limit in limits]
    if layout.pp > 1 and len(limits) > 1:
        plans.sort(key=lambda plan: costs.call(call.name, plan).seconds)
    found, least = [], machine.memory + 1
    for plan in plans:
        n_bytes = costs.memory(call.name, plan).in_call
        if n_bytes < least:
            found.append(plan)
            least = n_bytes
            if not saving_memory:
                break
    return found


def _too_large(call: ModelFunctionCall, machine: Machine, plan: CallPlan, memory: MemoryItems) -> str:
    """The message that a call fits into memory in no layout."""
    items = {"parameters": memory.parameters, "optimizer": memory.optimizer, **memory.during}
    largest = sorted(((n_bytes, name) for name, n_bytes in items.items() if n_bytes), reverse=True)
    return (
        f"the call '{call.name}' does not fit into {size_text(machine.memory)} of memory on {machine.n_ranks} ranks: "
        f"even {plan.layout.short} needs {size_text(memory.in_call)} on a rank "
        f"({', '.join(f'{name} {size_text(n_bytes)}' for n_bytes, name in largest[:3])}); use more ranks, or lower "
        "max_tokens_per_microbatch"
    )
