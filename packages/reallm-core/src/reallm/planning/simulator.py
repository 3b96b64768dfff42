"""`Simulator`: how long a step takes under an execution plan, and how much memory, without starting a process.

Ranks walk through a step as in the real runner: in the order of `algorithms.schedule`, each taking part in what names
it. A call begins when all of its ranks are free and have what it reads, and a move of weights when the ranks of both
copies are free; outputs of other calls are received just before the call; what is offloaded leaves beside what follows,
and is waited for before the next call. At the end of a step all ranks meet. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement, Transfer
from reallm.algorithms.timeline import SpanKind
from reallm.parallel.layout import Layout
from reallm.planning.call_numbers import base_home_numbers, home_numbers, independent_calls, reads_of_calls
from reallm.planning.costs import CostModel, MemoryItems
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.machine import Machine
from reallm.planning.memory_levels import MemoryLevels, least_peak, memory_over_time
from reallm.planning.places import Place
from reallm.planning.rank_sets import RankSet, Segments, rank_set, ranks_in
from reallm.planning.simulation import Simulation
from reallm.planning.steps import Step, calls_of_steps
from reallm.planning.timing import Act, events, run

MAX_KEPT = 100_000
"""Results of pure functions that are kept, of each kind."""


@dataclass(frozen=True)
class Outcome:
    """What a plan leads to, in short."""

    seconds: float
    """Time of a step."""
    memory: int
    """Most bytes that a rank holds at a time."""
    host_memory: int
    """Most bytes that a rank has in host memory."""


class Simulator:
    """Simulates steps under execution plans.

    Args:
        graph: the graph.
        costs: times and sizes of calls and moves.
        machine: where it runs.
        optimizer_steps: optimizer steps in each step.
        bases: role -> the trained role whose base model it has; see `shared_bases`.
    """

    def __init__(
        self,
        graph: Graph,
        costs: CostModel,
        machine: Machine,
        optimizer_steps: int = 1,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        self.graph, self.costs, self.machine, self.bases = graph, costs, machine, bases or {}
        self._optimizer_steps = optimizer_steps
        self._calls = graph.calls
        self.homes = home_numbers(graph)
        """Number of each call to a model that its home is not chosen by -> number of the call that chooses it."""
        self.base_homes = base_home_numbers(graph, self.homes, self.bases)
        """Number of each call to a role with the base model of another one -> number of the call that chooses that
        one's home."""
        self._steps_of = [self._calls.index(call) for call in calls_of_steps(graph)]
        self._reads = reads_of_calls(graph)
        self._independent = independent_calls(graph)
        self._copy_numbers: dict[tuple[str, object], int] = {}
        self._places: dict[tuple[int, CallPlan], Place] = {}
        self._at_home: dict[tuple[Place, Layout], Place] = {}
        self._steps: dict[object, Step] = {}
        self._overlapping: dict[tuple[RankSet, ...], int] = {}
        self._segments: dict[tuple[RankSet, ...], Segments] = {}
        self._seconds: dict[object, tuple[float, int]] = {}

    # ------------------------------------------------------------------ places

    def places(self, plan: ExecutionPlan) -> list[Place]:
        """The calls of the graph under a plan.

        Raises:
            ConfigError: a layout needs more ranks than there are, or a role is trained in two layouts.
        """
        plan.placement(self.graph, self.machine.n_ranks, self.bases)
        return self.shared([self.place(number, plan.calls[call.name]) for number, call in enumerate(self._calls)])

    def place(self, call: int, plan: CallPlan) -> Place:
        """A call, by its number in the graph, under a plan of its own."""
        found = self._places.get((call, plan))
        if found is None:
            one = self._calls[call]
            copy, memory = -1, MemoryItems(0)
            if one.kind != "reward":
                copy = self._copy_numbers.setdefault((one.role, plan.layout.without_fsdp), len(self._copy_numbers))
                memory = self.costs.memory(one.name, plan)
            cost, ranks = self.costs.call(one.name, plan), rank_set(plan.layout.ranks)
            neighbours = self._of_nodes(plan.layout.ranks) & ~ranks if cost.contention else 0
            contention = cost.contention if neighbours else 0.0
            transient = memory.in_call - memory.kept
            found = Place(call, plan, copy, ranks, cost.seconds, contention, neighbours, memory, transient)
            self._places[call, plan] = found
        return found

    def shared(self, places: Sequence[Place]) -> list[Place]:
        """Places of all calls, those that share the home of their role with its very layout, as `Placement` has it.

        A role that several calls train is trained by all of them in the layout of the first one. A role that has the
        base model of another one is in that one's home if all of its calls have the layout of that.
        """
        found = list(places)
        for call, home in self.homes.items():
            one, of_home = places[call], places[home]
            is_at_home = one.copy == of_home.copy or self._calls[call].kind == "train_step"
            if not is_at_home or one.plan.layout == of_home.plan.layout:
                continue
            key = (one, of_home.plan.layout)
            if key not in self._at_home:
                self._at_home[key] = self.place(call, dataclasses.replace(one.plan, layout=of_home.plan.layout))
            found[call] = self._at_home[key]
        apart = {
            self._calls[call].role
            for call, home in self.base_homes.items()
            if not _may_share(places[call].plan, places[home].plan)
        }
        for call, home in self.base_homes.items():
            own = self.place(call, places[call].plan)
            found[call] = own if self._calls[call].role in apart else self.at_base(own, found[home])
        return found

    def at_base(self, one: Place, home: Place) -> Place:
        """The place of a call in the home of the role whose base model it has, and whose layout `one` has as well."""
        key = (one, home.plan.layout)
        if key not in self._at_home:
            there = self.place(one.call, dataclasses.replace(one.plan, layout=home.plan.layout))
            self._at_home[key] = dataclasses.replace(there, plan=one.plan, copy=home.copy)
        return self._at_home[key]

    def base_home(self, call: int, places: Sequence[Place]) -> int | None:
        """The call that chooses the home of another role which a call shares; None: it shares none."""
        home = self.base_homes.get(call)
        return home if home is not None and places[home].copy == places[call].copy else None

    # ------------------------------------------------------------------ what a plan leads to

    def outcome(self, places: Sequence[Place]) -> Outcome:
        """Time of a step and memory, given the places of all calls as `places` has them."""
        step, segments = self._step(places), self.segments(places)
        return Outcome(self._seconds_of(step, places, segments), *self._peaks(step, places, segments))

    def seconds(self, places: Sequence[Place]) -> float:
        """Time of a step; faster than `outcome`."""
        return self._seconds_of(self._step(places), places, self.segments(places))

    def memory(self, places: Sequence[Place]) -> tuple[int, int]:
        """The most bytes that a rank holds at a time, and has in host memory; faster than `outcome`."""
        return self._peaks(self._step(places), places, self.segments(places))

    def _seconds_of(self, step: Step, places: Sequence[Place], segments: Segments) -> float:
        acts = list(self._acts(step, places, segments))
        return run(acts, len(segments.parts), len(self._calls), n_steps=2 if step.offloads else 1)

    def _peaks(self, step: Step, places: Sequence[Place], segments: Segments) -> tuple[int, int]:
        if not step.offloads:
            return least_peak(self._calls, places, segments), 0
        levels = MemoryLevels(self._calls, places, segments, self._homes_of(places))
        for item in step.items + step.items:  # the first step, and one of the others
            levels.begin(item)
        return max(levels.peaks), max(levels.host_peaks)

    def least_memory(self, places: Sequence[Place]) -> int:
        """Bytes that some rank holds at a time, at least, if the copies are offloaded that the places say."""
        return least_peak(self._calls, places, self.segments(places))

    def move_seconds(self, home: Place, guest: Place) -> float:
        """Seconds that the weights of a role take from its home to another copy."""
        return self._move(self._calls[home.call].role, home, guest)[0]

    def host_copy_seconds(self, call: int, one: Place, *, with_optimizer: bool) -> float:
        """Seconds that the copy of a call takes to host memory, or back."""
        return self._host_copy(self._calls[call].role, one, weights=True, optimizer=with_optimizer)[0]

    def simulate(self, plan: ExecutionPlan) -> Simulation:
        """A step under a plan, with all that ranks do.

        Raises:
            ConfigError: a layout needs more ranks than there are, or a role is trained in two layouts.
        """
        places = self.places(plan)
        step, segments = self._step(places), self.segments(places)
        acts = list(self._acts(step, places, segments))
        found = events(acts, len(segments.parts), len(self._calls), n_steps=2 if step.offloads else 1)
        levels = MemoryLevels(self._calls, places, segments, self._homes_of(places), itemized=True)
        for item in step.items:
            levels.begin(item)
        memory = memory_over_time(levels, step.items, acts, found)
        return Simulation.of(self.machine.n_ranks, segments, acts, found, memory)

    def segments(self, places: Sequence[Place]) -> Segments:
        """The segments of ranks that take part in the same calls of a step."""
        sets = tuple(places[number].ranks for number in self._steps_of)
        found = self._segments.get(sets)
        if found is None:
            if len(self._segments) > MAX_KEPT:
                self._segments.clear()
            found = self._segments[sets] = Segments(sets)
        return found

    def _homes_of(self, places: Sequence[Place]) -> dict[int, int]:
        """Number of each call to a model whose home another call chooses under a plan -> number of that call."""
        of_bases = {call: self.base_home(call, places) for call in self.base_homes}
        return self.homes | {call: home for call, home in of_bases.items() if home is not None}

    def _step(self, places: Sequence[Place]) -> Step:
        """The step of these places: one for all plans in which the same calls share copies, ranks and offloads."""
        pattern = (
            _firsts([one.copy for one in places]),
            self._overlaps(places),
            tuple([(one.offload, one.plan.prefetch) for one in places]),
        )
        found = self._steps.get(pattern)
        if found is None:
            homes = {
                call.role: one.plan.layout
                for number, (call, one) in enumerate(zip(self._calls, places, strict=True))
                if call.kind != "reward" and number not in self.homes
            }
            named = [(call.name, one.plan) for call, one in zip(self._calls, places, strict=True)]
            offloaded = frozenset(name for name, plan in named if plan.offload)
            prefetched = frozenset(name for name, plan in named if plan.prefetch)
            layouts = {name: plan.layout for name, plan in named}
            shared = {}
            for number, call in enumerate(self._calls):
                home = self.base_home(number, places)
                if home is not None:
                    shared[call.role] = self._calls[home].role
                    homes[call.role] = layouts[call.name] = places[home].plan.layout
            placement = Placement(
                self.graph, self.machine.n_ranks, layouts, homes, offloaded, prefetched, shared=shared
            )
            found = self._steps[pattern] = Step.of(placement, self._optimizer_steps)
        return found

    def _overlaps(self, places: Sequence[Place]) -> int:
        """Which calls have ranks in common, as a number."""
        ranks = tuple([one.ranks for one in places])
        found = self._overlapping.get(ranks)
        if found is None:
            found = 0
            for one, other in combinations(ranks, 2):
                found = 2 * found + bool(one & other)
            if len(self._overlapping) > MAX_KEPT:
                self._overlapping.clear()
            self._overlapping[ranks] = found
        return found

    def _acts(self, step: Step, places: Sequence[Place], segments: Segments) -> Iterator[Act]:
        """What takes time in a step, in order."""
        for item in step.items:
            one, call = places[item.call], self._calls[item.call]
            if item.kind == "call":
                yield from self._data(item.call, places, segments)
                seconds = self._beside_others(item.call, places) if one.contention else one.seconds
                yield Act("call", call.name, segments.of(one.ranks), seconds, 0, item.call, (one.copy,))
            elif item.kind in ("move", "update"):
                source = places[item.source]
                seconds, n_bytes = self._move(call.role, source, one)
                name = f"{call.role} to {one.plan.layout.short}"
                if item.kind == "update":
                    name = f"{self._calls[item.source].role} to {call.role}"
                ranks, copies = segments.of(source.ranks | one.ranks), (source.copy, one.copy)
                yield Act("move", name, ranks, seconds * item.share, n_bytes, -1, copies)
            else:
                home = self.base_home(item.call, places)
                held = one if home is None else places[home]
                seconds, n_bytes = self._host_copy(self._calls[held.call].role, held, item.weights, item.optimizer)
                kind: SpanKind = "reload" if item.kind == "reload" else "offload"
                yield Act(kind, call.name, segments.of(one.ranks), seconds, n_bytes, -1, (one.copy,))

    def _beside_others(self, call: int, places: Sequence[Place]) -> float:
        """Seconds of a call, some longer for the share of it in which other ranks of its nodes compute.

        They are taken to compute at the same time all calls that it neither waits for nor is waited for by, whenever
        the plan begins them.
        """
        one = places[call]
        busy = 0.0
        for number in self._independent[call]:
            other = places[number]
            if not other.ranks & one.ranks:
                busy += other.seconds * (other.ranks & one.neighbours).bit_count()
        return one.seconds + one.contention * min(1.0, busy / (one.seconds * one.neighbours.bit_count()))

    def _of_nodes(self, ranks: Sequence[int]) -> RankSet:
        """All ranks of the nodes of these ranks."""
        size = self.machine.ranks_per_node
        return rank_set(
            rank for node in set(map(self.machine.node, ranks)) for rank in range(node * size, (node + 1) * size)
        )

    # ------------------------------------------------------------------ costs, kept

    def _move(self, role: str, source: Place, target: Place) -> tuple[float, int]:
        key = ("move", role, source.copy, source.plan.layout.fsdp, target.copy, target.plan.layout.fsdp)
        found = self._seconds.get(key)
        if found is None:
            cost = self.costs.move(role, source.plan.layout, target.plan.layout)
            found = self._seconds[key] = (cost.seconds, cost.busiest)
        return found

    def _host_copy(self, role: str, one: Place, weights: bool, optimizer: bool) -> tuple[float, int]:
        key = ("host", one.copy, one.plan.layout.fsdp, weights, optimizer)
        found = self._seconds.get(key)
        if found is None:
            cost = self.costs.host_copy(role, one.plan.layout, with_optimizer=optimizer)
            found = (cost.seconds, cost.n_bytes)
            if not weights:  # the optimizer's state alone
                rest = self.costs.host_copy(role, one.plan.layout, with_optimizer=False)
                found = (max(0.0, cost.seconds - rest.seconds), cost.n_bytes - rest.n_bytes)
            self._seconds[key] = found
        return found

    def _data(self, call: int, places: Sequence[Place], segments: Segments) -> Iterator[Act]:
        """Outputs of other calls that ranks of a call lack: each key once to each rank."""
        ranks = places[call].ranks
        for writer, earlier, keys in self._reads[call]:
            missing = ranks & ~places[writer].ranks
            for other in earlier:
                missing &= ~places[other].ranks
            if missing:
                seconds, n_bytes = self._sending(call, writer, keys, places[writer], missing)
                name = f"{self._calls[writer].name} to {self._calls[call].name}"
                yield Act("data", name, segments.of(missing), seconds, n_bytes, writer)

    def _sending(
        self, call: int, writer: int, keys: tuple[str, ...], source: Place, missing: RankSet
    ) -> tuple[float, int]:
        """Seconds that the busiest sender takes, and bytes that each rank receives.

        Senders take turns, as in `Placement.transfers`.
        """
        key = (call, writer, keys, source.ranks, missing)
        found = self._seconds.get(key)
        if found is None:
            senders = source.plan.layout.ranks
            of_message: dict[bool, tuple[float, int]] = {}
            busy: dict[int, float] = {}
            for number, target in enumerate(ranks_in(missing)):
                sender = senders[number % len(senders)]
                is_near = self.machine.node(sender) == self.machine.node(target)
                if is_near not in of_message:
                    names = self._calls[writer].name, self._calls[call].name
                    cost = self.costs.data(Transfer(*names, keys, sender, target))
                    of_message[is_near] = (cost.seconds, cost.n_bytes)
                busy[sender] = busy.get(sender, 0.0) + of_message[is_near][0]
            found = self._seconds[key] = (max(busy.values()), max(n for _, n in of_message.values()))
            if len(self._seconds) > MAX_KEPT:
                self._seconds.clear()
        return found


def _firsts(copies: Sequence[int]) -> tuple[int, ...]:
    """For each call the first one that uses the same copy of a model."""
    return tuple([copies.index(one) for one in copies])


def _may_share(plan: CallPlan, home: CallPlan) -> bool:
    """Whether a call has the layout of a home, and nothing that its own copy of the model would be needed for."""
    return plan.layout.without_fsdp == home.layout.without_fsdp and not plan.offload and not plan.prefetch
