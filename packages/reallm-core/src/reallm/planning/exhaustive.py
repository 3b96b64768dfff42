"""Exhaustive search: the best of all plans that candidates allow, by branch and bound. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm.planning.bounds import Bounds
from reallm.planning.offloading import Fitted, Fitting
from reallm.planning.places import Place
from reallm.planning.rank_sets import ranks_in
from reallm.planning.simulator import Simulator

Mesh = tuple[int, int]
"""A first rank and a number of ranks."""


class Exhaustive:
    """Goes through the plans call by call, and leaves out those that cannot be better than the best known one.

    The calls that are placed give the moments from which each rank is free, since ranks walk through calls in order;
    from these follows a lower bound (`Bounds.completed`). Of plans that differ only in the numbers of ranks, one is
    tried: a machine's nodes are alike, and halves of a node as well.

    Args:
        simulator: the simulator.
        fitting: evaluates whole plans.
        places: the places of each call, by its number.
        max_tried: number of partial plans after which the search gives up.
        is_symmetric: whether ranks may be renumbered: sizes are powers of two, and no call is given.
    """

    def __init__(
        self,
        simulator: Simulator,
        fitting: Fitting,
        places: Mapping[int, Sequence[Place]],
        max_tried: int,
        *,
        is_symmetric: bool,
    ) -> None:
        self._simulator, self._fitting = simulator, fitting
        self._n_ranks = simulator.machine.n_ranks
        self._bounds = Bounds.of(simulator.graph, places, self._n_ranks)
        self._places = {number: sorted(found, key=lambda one: one.seconds) for number, found in places.items()}
        self._ranks = {one: tuple(ranks_in(one.ranks)) for found in places.values() for one in found}
        self._is_symmetric, self._max_tried = is_symmetric, max_tried
        self._best: Fitted | None = None
        self.n_tried = 0
        """Number of partial plans that were tried."""

    @property
    def is_complete(self) -> bool:
        """Whether all plans have been considered."""
        return self.n_tried <= self._max_tried

    def best(self, known: Fitted | None) -> Fitted | None:
        """The best plan; None if none fits into memory.

        Args:
            known: a plan to begin with.
        """
        self._best = known if known is not None and not known.excess else None
        others = {n: found[0] for n, found in self._places.items() if n not in self._bounds.order}
        only = [self._mesh(found[0]) for found in self._places.values() if len(found) == 1]
        self._extend(others, {}, [0.0] * self._n_ranks, only)
        return self._best

    def _extend(
        self, chosen: dict[int, Place], ended: dict[int, float], free: list[float], meshes: Sequence[Mesh]
    ) -> None:
        n_done = len(ended)
        if n_done == len(self._bounds.order):
            self._evaluate(chosen)
            return
        call = self._bounds.order[n_done]
        ready = max([ended[other] for other in self._bounds.waits_for[call]], default=0.0)
        for one in self._places[call]:
            if not self.is_complete:
                return
            ranks, mesh = self._ranks[one], self._mesh(one)
            if self._is_symmetric and not is_first_alike(mesh, meshes, self._n_ranks):
                continue
            self.n_tried += 1
            end = max(ready, max([free[rank] for rank in ranks])) + one.seconds
            after = list(free)
            for rank in ranks:
                after[rank] = end
            ended[call] = end
            if self._can_be_better(self._bounds.completed(ended, sum(after), n_done + 1)):
                chosen[call] = one
                self._extend(chosen, ended, after, meshes if mesh in meshes else [*meshes, mesh])
            del ended[call]

    def _mesh(self, one: Place) -> Mesh:
        ranks = self._ranks[one]
        return ranks[0], len(ranks)

    def _can_be_better(self, bound: float) -> bool:
        return self._best is None or bound < self._best.outcome.seconds * (1 - 1e-9)

    def _evaluate(self, chosen: Mapping[int, Place]) -> None:
        places = self._simulator.shared([chosen[number] for number in range(len(chosen))])
        if not self._can_be_better(self._fitting.without_offloads(places).outcome.seconds):
            return  # offloads only take time
        found = self._fitting.fitted(places, exact=True)
        if not found.excess and self._can_be_better(found.outcome.seconds):
            self._best = found


def is_first_alike(mesh: Mesh, meshes: Sequence[Mesh], n_ranks: int) -> bool:
    """Whether, of the sets of ranks that are alike but for the numbers of ranks, this is the first.

    At every level of halving the ranks, the second half is only chosen if an earlier set lies within either half, so
    that they differ.

    Args:
        mesh: the set.
        meshes: those that were chosen before.
        n_ranks: number of ranks, a power of two.
    """
    first, size = 0, n_ranks
    while size > mesh[1]:
        half = size // 2
        if mesh[0] >= first + half:
            if not any(first <= other < first + size and n <= half for other, n in meshes):
                return False
            first += half
        size = half
    return True
