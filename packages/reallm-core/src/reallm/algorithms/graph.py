"""The dataflow graph of an algorithm: its calls in execution order, and the edges between them. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import Any, get_args

from reallm.algorithms.owner import errors_name, made_by_plugin, owner_of
from reallm.config.training import model_args
from reallm.errors import DataError, PluginError, did_you_mean, quoted
from reallm.specs import Algorithm, CallKind, ModelFunctionCall


@dataclass(frozen=True)
class Edge:
    """One call follows another."""

    source: str
    target: str
    key: str | None = None
    """The key of the batch that the source writes and the target reads; None: the target needs the weights that the
    source leaves."""
    next_step: bool = False
    """Whether the target is a call of the next step."""


@dataclass(frozen=True)
class Graph:
    """The calls of an algorithm in execution order."""

    calls: tuple[ModelFunctionCall, ...]
    edges: tuple[Edge, ...] = field(default=(), repr=False)
    owner: str = field(default="", repr=False)
    """The algorithm and its distribution, for errors; empty if it is not that of a plugin."""

    @classmethod
    def of(cls, algorithm: Algorithm, config: Any) -> Graph:
        """The graph of an algorithm for an instance of its configuration, checked.

        Raises:
            PluginError: names of calls are not unique, two calls write the same key, nobody reads a key that a call
                writes, calls wait for each other, a role has no interface, no call trains, or a call has settings that
                do not fit its kind.
            ConfigError: the configuration has no model for a role.
        """
        with made_by_plugin(algorithm, "its graph"):
            listed = algorithm.calls(config)
        owner = owner_of(algorithm)
        with errors_name(owner):
            _check_calls(listed)
            graph = replace(cls.from_calls(listed), owner=owner)
            if not graph.train_calls:
                raise PluginError("no call of the algorithm has the kind 'train_step'")
            for call in graph.calls:
                if call.role not in algorithm.interfaces:
                    hint = did_you_mean(call.role, algorithm.interfaces)
                    raise PluginError(
                        f"the call '{call.name}' is to the role '{call.role}', which has no interface{hint}"
                    )
        for role in graph.roles:
            model_args(config, role)
        return graph

    @classmethod
    def from_calls(cls, calls: Sequence[ModelFunctionCall]) -> Graph:
        """The graph of these calls, in execution order.

        Raises:
            PluginError: see `of`.
        """
        edges = _edges(calls)
        ordered = _execution_order(calls, edges)
        return cls(ordered, (*edges, *_edges_to_next_step(ordered, edges)))

    @property
    def needed_edges(self) -> list[Edge]:
        """The edges within a step, without orders by weights that follow from others."""
        edges = [edge for edge in self.edges if not edge.next_step]
        return [
            edge
            for edge in edges
            if edge.key is not None or edge.target not in _reachable(edge.source, [o for o in edges if o is not edge])
        ]

    @property
    def roles(self) -> list[str]:
        """All roles that have a model, in the order in which they are first called."""
        return list(dict.fromkeys(call.role for call in self.calls if call.kind != "reward"))

    @property
    def all_roles(self) -> list[str]:
        """All roles, those of rewards included, in the same order."""
        return list(dict.fromkeys(call.role for call in self.calls))

    @property
    def dataset_keys(self) -> list[str]:
        """The keys that the dataset must give, in the order in which they are first read."""
        written = {key for call in self.calls for key in call.outputs}
        return list(dict.fromkeys(key for call in self.calls for key in call.inputs if key not in written))

    @property
    def roles_of_steps(self) -> list[str]:
        """The roles whose model is needed during training: all but those whose every call is precomputed."""
        called = {call.role for call in self.calls if not call.precompute}
        return [role for role in self.roles if role in called or role in self.updated_roles]

    @property
    def trained_roles(self) -> list[str]:
        """The roles with a `train_step`, in the same order."""
        return list(dict.fromkeys(call.role for call in self.train_calls))

    @property
    def updated_roles(self) -> list[str]:
        """The roles whose weights follow those of a trained one, in the same order."""
        return list(dict.fromkeys(update.target for call in self.calls for update in call.updates))

    @property
    def train_calls(self) -> list[ModelFunctionCall]:
        """The calls that train."""
        return [call for call in self.calls if call.kind == "train_step"]

    @property
    def trained_keys(self) -> set[str]:
        """The keys that train calls read."""
        return {key for call in self.train_calls for key in call.inputs}

    @property
    def metric_prefixes(self) -> dict[str, str]:
        """Prefix of a step's metrics by train call."""
        return {call.name: self.metric_prefix(call.name) for call in self.train_calls}

    def metric_prefix(self, call: str) -> str:
        """Prefix of the metrics of a step that are those of a call: `train` if only one call trains, else its name."""
        return "train" if len(self.train_calls) == 1 else call

    @property
    def eval_prefixes(self) -> dict[str, str]:
        """Prefix of an evaluation's metrics, by the train call whose objective gives them."""
        calls = self.train_calls
        return {call.name: "eval" if len(calls) == 1 else f"eval/{call.name}" for call in calls}

    @property
    def rollout_calls(self) -> list[ModelFunctionCall]:
        """The calls that make a rollout, in order: those that generate, and those whose outputs they need."""
        generating = [call for call in self.calls if call.kind == "generate"]
        needed = {name for call in generating for name in (call.name, *self._before(call))}
        return [call for call in self.calls if call.name in needed]

    @property
    def objective_calls(self) -> list[ModelFunctionCall]:
        """The train calls whose objective can be evaluated on given data: those that read nothing generated."""
        generated = {call.name for call in self.calls if call.kind == "generate"}
        return [call for call in self.train_calls if not generated & self._before(call)]

    def eval_calls(self, measured: Collection[str]) -> list[ModelFunctionCall]:
        """The calls of an evaluation, in order: the `objective_calls`, those `measured`, and what these depend on.

        Args:
            measured: names of the calls whose interface gives metrics of a batch; see `EvalMetrics`.
        """
        wanted = {call.name for call in self.objective_calls}
        wanted |= {call.name for call in self.calls if call.name in measured and call.kind != "train_step"}
        needed = wanted.union(*(self._before(call) for call in self.calls if call.name in wanted))
        return [call for call in self.calls if call.name in (wanted if call.kind == "train_step" else needed)]

    def eval_metric_names(self, interfaces: Mapping[str, Any]) -> list[str] | None:
        """The metrics that an evaluation may give, where `*` stands for any name; None if an interface does not declare
        its own.

        Args:
            interfaces: interface class or instance by role.
        """
        prefixes, names = self.eval_prefixes, []
        for call in self.objective_calls:
            declared = getattr(interfaces[call.role], "metric_names", None)
            if declared is None:
                return None
            names += [f"{prefixes[call.name]}/{name}" for name in declared]
        for call in self.calls:
            interface = interfaces.get(call.role)
            if call.kind != "train_step" and hasattr(interface, "eval_metrics"):
                declared = getattr(interface, "metric_names", None)
                if declared is None:
                    return None
                names += [f"eval/{name}" for name in declared]
        return names

    def check_producers(self, keys: Collection[str], dataset: str) -> None:
        """Check that the dataset or an earlier call writes each key that a call reads.

        Args:
            keys: the keys of the dataset's samples.
            dataset: name of the dataset.

        Raises:
            DataError: a key is missing; names it and the call.
        """
        known = set(keys)
        for call in self.calls:
            for key in call.inputs:
                if key not in known:
                    raise DataError(
                        f"the call '{call.name}' needs '{key}', which dataset '{dataset}' does not give; "
                        f"it gives {', '.join(keys)}: choose another dataset.name"
                    )
            known |= set(call.outputs)

    def _before(self, call: ModelFunctionCall) -> set[str]:
        """Names of the calls of the same step whose outputs a call depends on, directly or through others."""
        by_key = [edge for edge in self.edges if edge.key is not None]
        return {other.name for other in self.calls if call.name in _reachable(other.name, by_key)}


def _check_calls(calls: Sequence[ModelFunctionCall]) -> None:
    """Check each call by itself, and that its outputs are read."""
    read = {key for call in calls for key in call.inputs}
    trained = {call.role for call in calls if call.kind == "train_step"}
    models = {call.role for call in calls if call.kind != "reward"}
    updated = {update.target for call in calls for update in call.updates}
    made_in_steps = {key: call.name for call in calls if not call.precompute for key in call.outputs}
    for call in calls:
        kinds = get_args(CallKind)
        if call.kind not in kinds:
            raise PluginError(
                f"the call '{call.name}' has the kind '{call.kind}', but there are {quoted(kinds)}"
                f"{did_you_mean(call.kind, kinds)}"
            )
        for key in call.outputs:
            if key not in read:
                hint = did_you_mean(key, read)
                raise PluginError(f"the call '{call.name}' writes '{key}', which no call reads{hint}")
        if call.kind != "reward" and any(one.role == call.role and one.kind == "reward" for one in calls):
            raise PluginError(f"the role '{call.role}' has both a reward, which has no model, and a call to a model")
        if call.precompute and (call.kind != "inference" or call.role in trained | updated):
            raise PluginError(f"the call '{call.name}' cannot be precomputed: the weights of its role change")
        for key in call.inputs if call.precompute else ():
            if key in made_in_steps:
                raise PluginError(
                    f"the call '{call.name}' cannot be precomputed: it reads '{key}', which '{made_in_steps[key]}' "
                    "writes anew in each step"
                )
        for update in call.updates:
            if call.kind != "train_step":
                raise PluginError(f"the call '{call.name}' updates '{update.target}', but does not train")
            if update.target not in models - trained:
                raise PluginError(
                    f"the call '{call.name}' updates '{update.target}', which is not a role with a model that is not "
                    "trained"
                )
            if update.every < 1 or not 0 < update.eta <= 1:
                raise PluginError(
                    f"the call '{call.name}' updates '{update.target}' with every={update.every} and eta={update.eta}; "
                    "every must be at least 1, eta above 0 and at most 1"
                )


def _edges(calls: Sequence[ModelFunctionCall]) -> list[Edge]:
    """The edges within a step.

    Raises:
        PluginError: two calls have the same name or write the same key.
    """
    names: set[str] = set()
    writers: dict[str, str] = {}
    for call in calls:
        if call.name in names:
            raise PluginError(f"two calls of the algorithm are named '{call.name}'")
        names.add(call.name)
        for key in call.outputs:
            if key in writers:
                raise PluginError(f"calls '{writers[key]}' and '{call.name}' of the algorithm both write '{key}'")
            writers[key] = call.name
    edges = [Edge(writers[key], call.name, key) for call in calls for key in call.inputs if key in writers]
    return edges + _weight_edges(calls, edges)


def _weight_edges(calls: Sequence[ModelFunctionCall], edges: Sequence[Edge]) -> list[Edge]:
    """Edges between calls to a model that one of them changes: keys that order them otherwise come first."""
    found = []
    for first, then in combinations(calls, 2):
        changes = then.role in _changed_roles(first) or first.role in _changed_roles(then)
        if changes and first.name not in _reachable(then.name, edges):
            found.append(Edge(first.name, then.name))
    return found


def _changed_roles(call: ModelFunctionCall) -> set[str]:
    """The roles whose weights a call changes."""
    return {call.role, *(update.target for update in call.updates)} if call.kind == "train_step" else set()


def _reachable(start: str, edges: Sequence[Edge]) -> set[str]:
    """Names of the calls that wait for the output of a call, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        new = {edge.target for edge in edges if edge.source == name} - found
        found |= new
        waiting += new
    return found


def _edges_to_next_step(ordered: Sequence[ModelFunctionCall], edges: Sequence[Edge]) -> list[Edge]:
    """The edges to the next step: a call to a model whose weights change follows the last change of them.

    Not those to calls that follow another call to the same model within the step.
    """
    last_change = {role: call.name for call in ordered for role in sorted(_changed_roles(call))}
    after = {call.name: _reachable(call.name, edges) for call in ordered}
    return [
        Edge(last_change[call.role], call.name, next_step=True)
        for call in ordered
        if call.role in last_change
        and not any(other.role == call.role and call.name in after[other.name] for other in ordered)
    ]


def _execution_order(calls: Sequence[ModelFunctionCall], edges: Sequence[Edge]) -> tuple[ModelFunctionCall, ...]:
    """The calls, each after those that it waits for, otherwise in the order in which they are listed.

    Raises:
        PluginError: calls wait for each other.
    """
    waits_for = {call.name: {edge.source for edge in edges if edge.target == call.name} for call in calls}
    try:
        TopologicalSorter(waits_for).prepare()
    except CycleError as error:
        raise PluginError(f"calls of the algorithm wait for each other: {' <- '.join(error.args[1])}") from error
    ordered: list[ModelFunctionCall] = []
    left = list(calls)
    while left:
        done = {call.name for call in ordered}
        ready = next(call for call in left if waits_for[call.name] <= done)
        ordered.append(ready)
        left.remove(ready)
    return tuple(ordered)
