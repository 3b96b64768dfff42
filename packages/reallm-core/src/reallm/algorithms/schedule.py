"""`schedule`: the order in which calls are computed and weights are moved between copies of models. Imports no torch.

The order is a function of the placement alone, so that all ranks have the same one. Each rank takes part in the actions
that name it, one after another, and passes over the others. That never ends in a deadlock, however the ranks of actions
overlap: of all actions that are not done, take the first. All that its ranks have to do before it is done, so they are
all there; and the outputs that a call reads come from actions before it, whose ranks have sent them without waiting.
For the same reason any two ranks meet in the same order, which is all that gloo and NCCL ask for.

Calls keep the order of the graph. A move of weights is a meeting of the ranks of both copies, since it succeeds on all
of them or on none. It is made as early as the weights are final, but never while one of its ranks has a call to compute
first: whoever was there already would wait for that call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reallm.algorithms.placement import Placement, Ranks
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall, WeightUpdate

Copy = tuple[str, Layout]
"""A copy of a role's model: the role and the layout."""


@dataclass(frozen=True)
class Compute:
    """The ranks of a call compute it."""

    call: ModelFunctionCall
    ranks: Ranks


@dataclass(frozen=True)
class Move:
    """The home of a role sends its weights to another copy."""

    role: str
    layout: Layout
    ranks: Ranks


@dataclass(frozen=True)
class Update:
    """The weights of another role follow those that a call has trained."""

    call: ModelFunctionCall
    update: WeightUpdate
    ranks: Ranks


@dataclass(frozen=True)
class Offload:
    """The ranks of a call move the copy that it has used to host memory."""

    call: ModelFunctionCall
    ranks: Ranks


@dataclass(frozen=True)
class Reload:
    """The ranks of a call start to bring back the copy that it uses from host memory, if it is there."""

    call: ModelFunctionCall
    ranks: Ranks


Action = Compute | Move | Update | Offload | Reload


def schedule(
    placement: Placement,
    calls: Sequence[ModelFunctionCall],
    behind: Collection[Copy] = (),
    updates: Mapping[str, Sequence[WeightUpdate]] | None = None,
) -> tuple[Action, ...]:
    """The actions of an execution of calls, in order.

    Args:
        placement: where calls are computed.
        calls: the calls, in the order of the graph.
        behind: the copies that have not the newest weights of their home.
        updates: the updates that follow each call that trains; None: nothing is trained.
    """
    return tuple(_Schedule(placement, calls, updates).actions(behind))


class _Schedule:
    def __init__(
        self,
        placement: Placement,
        calls: Sequence[ModelFunctionCall],
        updates: Mapping[str, Sequence[WeightUpdate]] | None,
    ) -> None:
        self._placement, self._calls, self._updates = placement, calls, updates
        self._before: dict[int, list[Move | Update]] = defaultdict(list)
        """The moves and updates before each call, by its number; those at the end by the number of calls."""
        self._reloads: dict[int, list[ModelFunctionCall]] = defaultdict(list)
        """The later calls whose copies come back beside each call, by its number."""

    def actions(self, behind: Collection[Copy]) -> Iterator[Action]:
        self._place(behind)
        for number in range(len(self._calls) + 1):
            meetings = self._before[number]
            previous = self._calls[number - 1] if number else None
            if previous is not None and previous.name in self._placement.offloaded:
                # what reads the copy comes first, or it would have to come back
                readers = [one for one in meetings if _source(one) == previous.role]
                yield from readers
                yield Offload(previous, self._placement.ranks(previous.name))
                meetings = [one for one in meetings if one not in readers]
            yield from meetings
            for later in self._reloads[number]:
                yield Reload(later, self._placement.ranks(later.name))
            if number < len(self._calls):
                call = self._calls[number]
                yield Compute(call, self._placement.ranks(call.name))

    def _place(self, behind: Collection[Copy]) -> None:
        """Decide before which call each move and each update is made."""
        final = dict.fromkeys(behind, 0)
        """Copies that are behind -> the number of the first call that finds their home's weights final."""
        for number, call in enumerate(self._calls):
            copy = (call.role, self._placement.layouts[call.name])
            if copy in final:
                self._place_move(copy, final.pop(copy), number)
            elif call.name in self._placement.prefetched:
                self._place_reload(copy, number)
            if call.kind != "train_step" or self._updates is None:
                continue
            final |= dict.fromkeys(self._copies(call.role), number + 1)
            for update in self._updates.get(call.name, ()):
                final |= dict.fromkeys(self._copies(update.target), self._place_update(call, update, number + 1))
        for copy, first in final.items():
            if first > 0 and copy not in self._offloaded:
                self._place_move(copy, first, len(self._calls))

    def _place_move(self, copy: Copy, first: int, use: int) -> None:
        """Place the move into a copy, as early as `first`, but before its use."""
        role, layout = copy
        ranks = _union(self._placement.homes[role].ranks, layout.ranks)
        if copy in self._offloaded:  # its memory is for others until it is used
            first = use
        elif first > 0:  # else all ranks are here, at the beginning
            first = self._when_free(ranks, first, use)
        self._before[first].append(Move(role, layout, ranks))

    def _place_reload(self, copy: Copy, use: int) -> None:
        """Place the reload of a copy beside the call before its use on one of its ranks, after others have used it."""
        ranks, beside = set(self._placement.ranks(self._calls[use].name)), 0
        for number in reversed(range(use)):
            call = self._calls[number]
            if (call.role, self._placement.layouts[call.name]) == copy:
                beside = number + 1
                break
            if not ranks.isdisjoint(self._placement.ranks(call.name)):
                beside = number
                break
        if beside < use:
            self._reloads[beside].append(self._calls[use])

    def _place_update(self, call: ModelFunctionCall, update: WeightUpdate, first: int) -> int:
        """Place an update before either of its roles is called again; returns the number of the call after it."""
        homes = self._placement.homes
        ranks = _union(homes[call.role].ranks, homes[update.target].ranks)
        end = next(
            (
                number
                for number in range(first, len(self._calls))
                if self._calls[number].role in (call.role, update.target)
            ),
            len(self._calls),
        )
        number = self._when_free(ranks, first, end)
        self._before[number].append(Update(call, update, ranks))
        return number

    def _when_free(self, ranks: Ranks, first: int, end: int) -> int:
        """The first call, from `first` to `end`, before which none of the ranks has any other to compute."""
        busy = [n for n in range(first, end) if not set(ranks).isdisjoint(self._placement.ranks(self._calls[n].name))]
        return busy[-1] + 1 if busy else first

    def _copies(self, role: str) -> list[Copy]:
        """The copies of a role's model, apart from its home."""
        return [(role, layout) for layout in self._placement.copies(role)[1:]]

    @cached_property
    def _offloaded(self) -> set[Copy]:
        calls = self._placement.graph.calls
        return {
            (call.role, self._placement.layouts[call.name]) for call in calls if call.name in self._placement.offloaded
        }


def _source(meeting: Move | Update) -> str:
    """The role whose weights are sent."""
    return meeting.role if isinstance(meeting, Move) else meeting.call.role


def _union(*ranks: Ranks) -> Ranks:
    return tuple(sorted(set().union(*ranks)))
