"""`WeightMoves`: this rank's part in moves of weights between copies of models, and to and from host memory."""

from __future__ import annotations

import time
from collections.abc import Mapping

from reallm.algorithms.role import Role
from reallm.algorithms.schedule import Copy, Move, Update
from reallm.algorithms.timeline import Timeline
from reallm.algorithms.weight_updates import update_weights
from reallm.errors import PeerError
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall


class WeightMoves:
    """This rank's part in moves of weights between copies of models, and to and from host memory.

    Args:
        roles: the loaded roles, by name.
        rank: this rank.
        timeline: records what this rank does.
    """

    def __init__(self, roles: Mapping[str, Role], rank: int, timeline: Timeline) -> None:
        self._roles, self._rank, self._timeline = roles, rank, timeline
        self._leaving: list[tuple[str, float, int]] = []
        """Call, begin and bytes of each offload that goes on."""
        self._reloading: dict[str, tuple[float, int]] = {}
        """Call -> begin and bytes of the reload of its copy."""

    def behind(self) -> list[Copy]:
        """The copies that have not the newest weights of their home; the same on all ranks."""
        return [(name, layout) for name, role in self._roles.items() for layout in role.replicas.behind]

    def move(self, move: Move) -> None:
        """Take part in a move, or note that it is made.

        Raises:
            PeerError: another rank is missing or stuck; names it, and the move.
        """
        replicas, name = self._roles[move.role].replicas, f"{move.role} to {move.layout.short}"
        if self._rank not in move.ranks:
            replicas.move(move.layout)
            return
        try:
            with self._timeline.span("move", name) as span:
                span.bytes = replicas.move(move.layout)
        except PeerError as error:
            raise PeerError(f"{error} (while the weights of {name} were moved)") from error

    def update(self, update: Update) -> None:
        """Take part in an update, as one of its ranks.

        Raises:
            PeerError: another rank is missing or stuck; names it, and the update.
        """
        trained, target = self._roles[update.call.role], self._roles[update.update.target]
        name = f"{update.call.role} to {update.update.target}"
        try:
            with self._timeline.span("move", name) as span:
                span.bytes = update_weights(trained, target, update.update.eta)
        except PeerError as error:
            raise PeerError(f"{error} (while the weights of {name} were moved)") from error
        trained.replicas.home_was_used()
        target.replicas.home_was_used()

    def offload(self, call: ModelFunctionCall, layout: Layout, *, trained: bool) -> None:
        """Start to move the copy that a call has used to host memory.

        Args:
            call: the call, which this rank has computed.
            layout: its layout.
            trained: whether the call has trained, so that the optimizer's state moves as well.
        """
        n_bytes = self._roles[call.role].replicas.offload(layout, trained=trained)
        self._leaving.append((call.name, time.perf_counter(), n_bytes))

    def reload(self, call: ModelFunctionCall, layout: Layout, *, trained: bool) -> None:
        """Start to bring back the copy that a call uses, if it is in host memory; arguments as of `offload`."""
        start = time.perf_counter()
        if n_bytes := self._roles[call.role].replicas.start_reload(layout, trained=trained):
            self._reloading.setdefault(call.name, (start, n_bytes))

    def begin_call(self, call: ModelFunctionCall) -> None:
        """Note that a call begins, which loads what is left of its copy layer by layer."""
        if call.name in self._reloading:
            start, n_bytes = self._reloading.pop(call.name)
            self._timeline.add("reload", call.name, start, time.perf_counter(), n_bytes)

    def make_room(self) -> None:
        """Wait until what is on its way to host memory is there, so that a call finds all memory that it may have."""
        for role in self._roles.values():
            role.replicas.wait_for_offload()
        for name, start, n_bytes in self._leaving:
            self._timeline.add("offload", name, start, time.perf_counter(), n_bytes)
        self._leaving.clear()
