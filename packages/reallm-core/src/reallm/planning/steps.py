"""What ranks do in each step of a run, in order, before it is known how long anything takes. Imports no torch.

The order is that of `algorithms.schedule`, which the real runner follows. All that it depends on in a plan is which
calls share a copy of a model, which have ranks in common, and after which models are offloaded: plans that are alike in
this have the same `Step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.schedule import Action, Compute, Copy, Move, Offload, Reload, Update, schedule
from reallm.specs import ModelFunctionCall


class Item(NamedTuple):
    """Something that ranks do in a step. Calls are named by their numbers in the graph."""

    kind: Literal["call", "move", "update", "reload", "offload"]
    call: int
    """The call; of a move, one that uses the copy; of an update, one that uses the home of the role that follows; of
    a reload or an offload, the call before or after which a copy is moved, or one that uses it."""
    source: int = -1
    """Of a move or an update, a call that uses the home whose weights are sent."""
    weights: bool = False
    """Of a reload or an offload, whether the parameters move."""
    optimizer: bool = False
    """Of a reload or an offload, whether the optimizer's state moves."""
    before_call: bool = False
    """Of a reload, whether it is for a call, not for a move of weights."""
    share: float = 1.0
    """In how many of the steps it happens."""


@dataclass(frozen=True)
class Step:
    """What ranks do in each step but the first few."""

    items: tuple[Item, ...]
    offloads: bool
    """Whether anything is offloaded."""

    @classmethod
    def of(cls, placement: Placement, optimizer_steps: int = 1) -> Step:
        """The steady state that a placement leads to.

        Args:
            placement: where calls are computed.
            optimizer_steps: optimizer steps in each step, of which updates of weights count their own.
        """
        calls = calls_of_steps(placement.graph)
        updates = {call.name: call.updates for call in calls}
        never_moved: set[Copy] = set()
        behind = _behind_after(schedule(placement, calls, never_moved, updates), placement)
        actions = schedule(placement, calls, behind, updates)
        items = tuple(_with_host_copies(actions, placement, _shares(placement.graph, optimizer_steps)))
        return cls(items, bool(placement.offloaded))


def calls_of_steps(graph: Graph) -> list[ModelFunctionCall]:
    """The calls of a graph that are computed in every step: not those whose outputs are cached before training."""
    return [call for call in graph.calls if not call.precompute]


def _behind_after(actions: Sequence[Action], placement: Placement) -> set[Copy]:
    """The copies without the newest weights after some actions."""
    behind: set[Copy] = set()
    for action in actions:
        changed = None
        if isinstance(action, Move):
            behind.discard((action.role, action.layout))
        elif isinstance(action, Update):
            changed = action.update.target
        elif isinstance(action, Compute) and action.call.kind == "train_step":
            changed = action.call.role
        if changed is not None:
            behind |= {(changed, layout) for layout in placement.copies(changed)[1:]}
    return behind


def _shares(graph: Graph, optimizer_steps: int) -> Mapping[str, float]:
    """Role -> in how many of the steps its weights change."""
    shares = dict.fromkeys(graph.trained_roles, 1.0)
    for call in graph.train_calls:
        for update in call.updates:
            shares[update.target] = min(1.0, optimizer_steps / update.every)
    return shares


def _with_host_copies(actions: Sequence[Action], placement: Placement, shares: Mapping[str, float]) -> Iterator[Item]:
    """The actions of a step in the steady state as items, with the reloads that they need."""
    state = _HostState(placement)
    for action in actions:  # the step before: leaves what is in host memory
        list(state.items(action, shares))
    for action in actions:
        yield from state.items(action, shares)


class _HostState:
    """Which copies are in host memory, and what is loaded when they are used."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._numbers = {call.name: number for number, call in enumerate(placement.graph.calls)}
        self._users: dict[Copy, int] = {}
        for number, call in enumerate(placement.graph.calls):
            if call.kind != "reward" and call.role not in placement.shared:
                self._users.setdefault((call.role, placement.layouts[call.name]), number)
        self._weights: set[Copy] = set()
        """Copies whose parameters are in host memory."""
        self._optimizers: set[Copy] = set()
        """Homes whose optimizer's state is in host memory."""
        self._returns: set[str] = set()
        """Roles whose home is moved to host memory again after its weights are read."""

    def items(self, action: Action, shares: Mapping[str, float]) -> Iterator[Item]:
        """What an action consists of."""
        placement = self._placement
        if isinstance(action, Compute):
            number = self._numbers[action.call.name]
            if action.call.kind != "reward":
                copy = (placement.holder(action.call.role), placement.layouts[action.call.name])
                if copy == self._home(action.call.role):
                    self._returns.discard(action.call.role)
                yield from self._loaded(copy, number, optimizer=action.call.kind == "train_step")
            yield Item("call", number)
        elif isinstance(action, Reload):
            copy = (action.call.role, placement.layouts[action.call.name])
            if copy == self._home(action.call.role):
                self._returns.discard(action.call.role)
            number = self._numbers[action.call.name]
            yield from self._loaded(copy, number, optimizer=action.call.kind == "train_step")
        elif isinstance(action, Offload):
            copy = (action.call.role, placement.layouts[action.call.name])
            if copy == self._home(action.call.role):
                self._returns.add(action.call.role)
            number = self._numbers[action.call.name]
            yield from self._moved_out(copy, number, optimizer=action.call.kind == "train_step")
        else:
            source = self._home(action.role if isinstance(action, Move) else action.call.role)
            target = (action.role, action.layout) if isinstance(action, Move) else self._home(action.update.target)
            yield from self._loaded(source)
            yield from self._loaded(target)
            kind: Literal["move", "update"] = "move" if isinstance(action, Move) else "update"
            yield Item(kind, self._users[target], self._users[source], share=shares.get(target[0], 1.0))
            for copy in (source, target):
                if copy[0] in self._returns and copy == self._home(copy[0]):
                    yield from self._moved_out(copy)

    def _home(self, role: str) -> Copy:
        return role, self._placement.homes[role]

    def _loaded(self, copy: Copy, call: int | None = None, *, optimizer: bool = False) -> Iterator[Item]:
        """Loading what is in host memory of a copy that is used, by a call or else by a move."""
        weights, optimizer = copy in self._weights, optimizer and copy in self._optimizers
        if weights or optimizer:
            number = self._users[copy] if call is None else call
            yield Item("reload", number, -1, weights, optimizer, before_call=call is not None)
        self._weights.discard(copy)
        if optimizer:
            self._optimizers.discard(copy)

    def _moved_out(self, copy: Copy, call: int | None = None, *, optimizer: bool = False) -> Iterator[Item]:
        """Moving a copy to host memory, after a call or else after a move."""
        yield Item("offload", self._users[copy] if call is None else call, -1, True, optimizer)
        self._weights.add(copy)
        if optimizer:
            self._optimizers.add(copy)
