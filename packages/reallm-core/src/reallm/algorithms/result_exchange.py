"""`ResultExchange`: makes known to all ranks what only the ranks of a call have computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from reallm.algorithms.eval_totals import EvalTotals
from reallm.algorithms.graph import Graph
from reallm.algorithms.interface_state import interface_states, load_interface_states
from reallm.algorithms.placement import Placement
from reallm.errors import NonFiniteError
from reallm.parallel.object_collectives import all_gather_json

Errors = Mapping[str, NonFiniteError]
"""Calls that could not be made -> why."""
Metrics = dict[str, dict[str, float]]
"""Metrics by call."""


class ResultExchange:
    """Makes known to all ranks what only the ranks of a call have computed, so that all decide alike.

    Nothing is exchanged if all ranks compute the calls in question.

    Args:
        graph: the graph.
        placement: where calls are computed.
        interfaces: an instance of the interface of each role, by name.
        rank: this rank.
    """

    def __init__(self, graph: Graph, placement: Placement, interfaces: Mapping[str, Any], rank: int) -> None:
        self._graph, self._placement, self._rank = graph, placement, rank
        self._interfaces = interfaces
        stateful = {role for role, interface in interfaces.items() if hasattr(interface, "state")}
        measured = {role for role, interface in interfaces.items() if hasattr(interface, "call_metrics")}
        self._after_each_step = not all(
            placement.is_whole(call.name)
            for call in graph.calls
            if call.kind == "train_step" or call.role in stateful | measured
        )

    def after_step(
        self,
        metrics: Metrics,
        versions: Mapping[str, int],
        errors: Errors,
        rollouts: dict[str, list[Mapping[str, Any]]],
    ) -> tuple[Metrics, dict[str, int]]:
        """The metrics of all calls, and the versions of all trained weights; states of interfaces are set.

        Args:
            metrics: metrics of this rank's calls.
            versions: versions of the weights that this rank trains, by role.
            errors: errors of this rank's calls.
            rollouts: records of rollouts by call; rank 0 gets those of the calls that it has no part in.

        Raises:
            NonFiniteError: a call could not be made.
        """
        if not self._after_each_step:
            self._raise_first(errors)
            return metrics, dict(versions)
        ranks = {role: self._state_ranks(role) for role in self._graph.all_roles}
        led = {role for role in ranks if self._rank == ranks[role][0]}
        found = _gathered(
            errors={name: str(error) for name, error in errors.items()},
            metrics={name: numbers for name, numbers in metrics.items() if self._leads(name)},
            versions={name: version for name, version in versions.items() if name in led},
            states=interface_states({role: self._interfaces[role] for role in led}),
            rollouts={
                name: records
                for name, records in rollouts.items()
                if self._leads(name) and 0 not in self._placement.ranks(name)
            },
        )
        self._raise_first(found["errors"])
        if self._rank == 0:
            rollouts.update(found["rollouts"])
        others = {role: self._interfaces[role] for role in ranks if self._rank not in ranks[role]}
        load_interface_states(others, found["states"])
        return found["metrics"] | metrics, found["versions"]

    def after_evaluation(self, totals: Mapping[str, EvalTotals], errors: Errors) -> dict[str, EvalTotals]:
        """The totals of all calls of an evaluation, by call, given those of this rank's calls.

        Raises:
            NonFiniteError: a call could not be made.
        """
        found: dict[str, EvalTotals] = dict(totals)
        if not all(map(self._placement.is_whole, totals)):
            gathered = _gathered(
                errors={name: str(error) for name, error in errors.items()},
                totals={name: dataclasses.asdict(one) for name, one in totals.items() if self._leads(name)},
            )
            self._raise_first(gathered["errors"])
            found = {name: EvalTotals.from_json(gathered["totals"][name]) for name in totals}
        self._raise_first(errors)
        return found

    def _state_ranks(self, role: str) -> tuple[int, ...]:
        """The ranks whose interface of a role has the state that counts: those of its home, or of its reward."""
        if role in self._placement.homes:
            return self._placement.homes[role].ranks
        return self._placement.ranks(next(call.name for call in self._graph.calls if call.role == role))

    def _leads(self, call: str) -> bool:
        """Whether this is the rank whose results of a call count: its first."""
        return self._rank == self._placement.ranks(call)[0]

    def _raise_first(self, errors: Mapping[str, str | NonFiniteError]) -> None:
        """Raise the error of the first call that has one."""
        for call in self._graph.calls:
            if call.name in errors:
                raise NonFiniteError(str(errors[call.name]))


def _gathered(**local: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Mappings with the items of all ranks; of a name that several ranks have, that of the lowest."""
    assert dist.group.WORLD is not None
    found: dict[str, dict[str, Any]] = {subject: {} for subject in local}
    for of_rank in all_gather_json(
        {subject: dict(items) for subject, items in local.items()}, dist.group.WORLD
    ).values():
        for subject, items in of_rank.items():
            found[subject] = items | found[subject]
    return found
