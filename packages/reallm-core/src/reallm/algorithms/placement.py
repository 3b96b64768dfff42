"""Where the calls of a graph are computed: the layout of each, the copies of each model, what is sent between ranks.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from reallm.algorithms.graph import Graph
from reallm.algorithms.shared_base import shared_bases
from reallm.config.training import TrainingConfig, call_args_of
from reallm.errors import ConfigError, counted, did_you_mean
from reallm.field_types import value_text
from reallm.options import changed
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """Outputs of a call that one rank sends to another, which lacks them for a later call."""

    producer: str
    consumer: str
    keys: tuple[str, ...]
    source: int
    target: int


@dataclass(frozen=True)
class Placement:
    """Where the calls of a graph are computed, and in which layouts each role's model is held.

    A role has a copy of its model for each layout in which it is called. One of them is the home: it is loaded, trained
    and saved, and the others get its weights by reallocation. It is that of the call that trains the role, or else that
    of its first call.
    """

    graph: Graph
    n_ranks: int
    """Ranks of the whole job."""
    layouts: Mapping[str, Layout]
    """The layout of each call; of a reward, which has no model, only the ranks count."""
    homes: Mapping[str, Layout]
    """The layout of each role's home."""
    offloaded: frozenset[str] = frozenset()
    """The calls after which the copy that they use is moved to host memory."""
    prefetched: frozenset[str] = frozenset()
    """The calls whose copy comes back from host memory beside the call before them, if it is there."""
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    """The most tokens of a micro-batch, of calls that have a limit of their own."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Role without a model of its own -> the role whose model, with other adapters or none, it is."""

    @classmethod
    def of(cls, config: TrainingConfig, graph: Graph, n_ranks: int) -> Placement:
        """The placement that a configuration asks for in a job of so many ranks.

        A call without a layout of its own has that of `parallel.*` over all ranks; a reward is computed by the first
        rank, since it may depend on the time that it takes. `dp` of a role that is trained is
        sharded as `parallel.zero` says, in the layout in which it is trained, and in every call that shares its copy.

        Raises:
            ConfigError: a layout needs more ranks than there are, is not possible for its call, or is that of a call
                that the graph does not have; or a copy is prefetched that is never offloaded; names the key.
        """
        given = given_layouts(config, graph)
        layouts: dict[str, Layout] = {}
        for call in graph.calls:
            trains = call.kind == "train_step"
            if call.name not in given and call.kind == "reward":
                layouts[call.name] = Layout.parse("dp1")
                continue
            if call.name not in given:
                layouts[call.name] = _default_layout(config, given, n_ranks, trained=trains)
                continue
            layout = given[call.name]
            layouts[call.name] = dataclasses.replace(layout, fsdp=True) if trains else layout
        args = {name: args for name, args in call_args_of(config).items() if name in layouts}
        offloaded = frozenset(name for name, one in args.items() if one.offload)
        prefetched = frozenset(name for name, one in args.items() if one.prefetch)
        found = cls.from_layouts(graph, layouts, n_ranks, offloaded, prefetched, shared_bases(config, graph))
        for call in graph.calls:
            users = [name for name, layout in found.calls_of(call.role).items() if layout == found.layouts[call.name]]
            if call.name in prefetched and offloaded.isdisjoint(users):
                raise ConfigError(
                    f"{call.name}.prefetch=true: its model is never offloaded; add {call.name}.offload=true, or leave "
                    "it out"
                )
        limits = {name: one.max_tokens_per_microbatch for name, one in args.items()}
        return dataclasses.replace(found, max_tokens={name: limit for name, limit in limits.items() if limit})

    @classmethod
    def from_layouts(
        cls,
        graph: Graph,
        layouts: Mapping[str, Layout],
        n_ranks: int,
        offloaded: frozenset[str] = frozenset(),
        prefetched: frozenset[str] = frozenset(),
        bases: Mapping[str, str] | None = None,
    ) -> Placement:
        """The placement with these layouts of all calls; see `shared_bases` for `bases`.

        Raises:
            ConfigError: a layout needs more ranks than there are, or a role is trained in two layouts; names the key.
        """
        layouts = dict(layouts)
        for name, layout in layouts.items():
            _check_started(f"{name}.layout={layout.short}", layout, n_ranks)
        homes = {role: layouts[_home_call(graph, role).name] for role in graph.roles}
        called = {role: [layouts[call.name] for call in graph.calls if call.role == role] for role in graph.roles}
        shared = {
            role: trained
            for role, trained in (bases or {}).items()
            if all(layout.without_fsdp == homes[trained].without_fsdp for layout in called[role])
        }
        homes |= {role: homes[trained] for role, trained in shared.items()}
        for call in graph.calls:
            if call.kind == "reward":
                continue
            home, layout = homes[call.role], layouts[call.name]
            if layout.without_fsdp == home.without_fsdp:
                layouts[call.name] = home
            elif call.kind == "train_step":
                first = _home_call(graph, call.role).name
                raise ConfigError(
                    f"{call.name}.layout={layout.short}: '{call.role}' is trained in the layout {home.short} by "
                    f"'{first}', and a role is trained in one; give both the same"
                )
        for call in graph.calls:
            for key, calls in {"offload": offloaded, "prefetch": prefetched}.items():
                if call.role in shared and call.name in calls:
                    raise ConfigError(
                        f"{call.name}.{key}=true has no effect: '{call.role}' shares the base model of "
                        f"'{shared[call.role]}'; leave it out"
                    )
        return cls(graph, n_ranks, layouts, homes, offloaded, prefetched, shared=shared)

    def holder(self, role: str) -> str:
        """The role whose model a role has: itself, or the trained one that it shares a base model with."""
        return self.shared.get(role, role)

    def copies(self, role: str) -> tuple[Layout, ...]:
        """The layouts in which the model of a role is held, its home first."""
        return tuple(dict.fromkeys([self.homes[role], *self.calls_of(role).values()]))

    def calls_of(self, role: str) -> dict[str, Layout]:
        """The layout of each call to a role."""
        return {call.name: self.layouts[call.name] for call in self.graph.calls if call.role == role}

    def ranks(self, call: str) -> Ranks:
        """The ranks that compute a call."""
        return self.layouts[call].ranks

    def is_whole(self, call: str) -> bool:
        """Whether all ranks of the job compute a call."""
        return len(self.ranks(call)) == self.n_ranks

    @cached_property
    def covers_job(self) -> bool:
        """Whether all ranks compute all calls, so that nothing is ever sent."""
        return all(self.is_whole(call.name) for call in self.graph.calls)

    def transfers(
        self, calls: Sequence[ModelFunctionCall], made: Sequence[ModelFunctionCall] = ()
    ) -> tuple[Transfer, ...]:
        """What is sent when these calls are executed in this order: each key once to each rank that lacks it.

        Senders take turns. Keys that none of the calls writes are on all ranks.

        Args:
            calls: the calls.
            made: calls that were executed before, whose outputs are on their ranks.
        """
        found: dict[tuple[str, str, int, int], list[str]] = {}
        for producer, consumer, key, source, target in self._sent_keys(calls, made):
            found.setdefault((producer, consumer, source, target), []).append(key)
        return tuple(
            Transfer(producer, consumer, tuple(keys), source, target)
            for (producer, consumer, source, target), keys in found.items()
        )

    def _sent_keys(
        self, calls: Sequence[ModelFunctionCall], made: Sequence[ModelFunctionCall]
    ) -> Iterator[tuple[str, str, str, int, int]]:
        """Producer, consumer, key, source and target of each key that is sent."""
        writers = {key: call.name for call in made for key in call.outputs}
        holders = {key: set(self.ranks(writer)) for key, writer in writers.items()}
        for call in calls:
            for key in call.inputs:
                if key not in writers:
                    continue
                sources = self.ranks(writers[key])
                missing = [rank for rank in self.ranks(call.name) if rank not in holders[key]]
                for number, target in enumerate(missing):
                    yield writers[key], call.name, key, sources[number % len(sources)], target
                holders[key] |= set(missing)
            for key in call.outputs:
                writers[key], holders[key] = call.name, set(self.ranks(call.name))


def given_layouts(config: TrainingConfig, graph: Graph) -> dict[str, Layout]:
    """The layouts that a configuration gives to calls, by call.

    Raises:
        ConfigError: the graph has no such call, it is a reward with a layout that splits a model, or a key has no
            effect on it.
    """
    calls = {call.name: call for call in graph.calls}
    found: dict[str, Layout] = {}
    for name, args in call_args_of(config).items():
        given = {key: f"{name}.{key}={value_text(value)}" for key, value in changed(args).items()}
        if name not in calls:
            for text in given.values():
                raise ConfigError(
                    f"{text}: with these settings the algorithm has no call '{name}'{did_you_mean(name, calls)}; it "
                    f"has {', '.join(calls)}"
                )
            continue
        call = calls[name]
        for key, text in given.items():
            if call.kind == "reward" and key != "layout":
                raise ConfigError(f"{text}: a reward has no model; leave it out")
            if call.kind == "generate" and key == "max_tokens_per_microbatch":
                raise ConfigError(f"{text} has no effect: what is generated is batched token by token; leave it out")
        if args.layout is None:
            continue
        layout = found[name] = Layout.parse(args.layout)
        if call.kind == "reward" and layout.tp * layout.pp > 1:
            raise ConfigError(
                f"{name}.layout={args.layout}: a reward has no model that could be split; write only its ranks, such "
                "as dp1@0"
            )
    return found


def _default_layout(config: TrainingConfig, given: Mapping[str, Layout], n_ranks: int, *, trained: bool) -> Layout:
    """The layout of a call without one of its own."""
    try:
        return config.parallel.layout(n_ranks, trained=trained)
    except ConfigError as error:
        if not given:
            raise
        others = ", ".join(f"{name}.layout={layout.short}" for name, layout in given.items())
        raise ConfigError(f"{error}, or give each call a layout (now {others})") from error


def _check_started(key: str, layout: Layout, n_ranks: int) -> None:
    needed = max(layout.ranks) + 1
    if needed > n_ranks:
        were = "was" if n_ranks == 1 else "were"
        raise ConfigError(
            f"{key} takes {counted(needed, 'process', 'processes')}, but {n_ranks} {were} started; start as many "
            "(torchrun --nproc-per-node), or change the layout"
        )


def _home_call(graph: Graph, role: str) -> ModelFunctionCall:
    """The call in whose layout a role has its home."""
    calls = [call for call in graph.calls if call.role == role]
    return next((call for call in calls if call.kind == "train_step"), calls[0])
