"""`search`: the fastest execution plan that fits into memory, and how far from the best it may be.

Up to 16 ranks all plans are considered, if they are not too many (`Exhaustive`). Otherwise, and for more ranks, the
search goes on from symmetric plans with greedy changes and simulated annealing (`Annealing`), unless what it has is
close to the bound of all others. It makes no other random choices than those of its seed, and its length is a number of
plans, not a time: all ranks of a job, and all runs, find the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from reallm.algorithms.graph import Graph
from reallm.errors import ConfigError
from reallm.parallel.layout import Layout
from reallm.planning.annealing import Annealing
from reallm.planning.bounds import Bounds
from reallm.planning.candidates import Candidates, Fits, at
from reallm.planning.costs import CostModel
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.exhaustive import Exhaustive
from reallm.planning.heuristic import heuristic
from reallm.planning.machine import Machine
from reallm.planning.misfit import misfit
from reallm.planning.offloading import Fitted, Fitting
from reallm.planning.places import Place
from reallm.planning.simulator import Outcome, Simulator

EXHAUSTIVE_RANKS = 16
"""Ranks up to which all plans are considered."""
EVALUATIONS = 20_000
"""Changes that annealing tries."""
PARTIAL_PLANS = 100_000
"""Partial plans that the exhaustive search tries before it gives up."""
SHORTER = 8
"""By what factor the exhaustive search with smaller micro-batches is shorter than the one before."""
SHORTER_ANNEALING = 60
"""The same of annealing, which begins with a good plan then."""
CLOSE = 0.03
"""Share by which the plan of an exhaustive search that gave up may be slower than its bound, for it to be the last."""
TRIES = 64
"""Choices for a call that the greedy search tries."""


@dataclass(frozen=True)
class SearchResult:
    """The fastest plan that was found."""

    plan: ExecutionPlan
    outcome: Outcome
    lower_bound: float
    """Seconds that no plan made of the candidates can be faster than, as long as nothing is prefetched."""
    is_best: bool
    """Whether all plans made of the candidates were considered; what is prefetched was chosen for the best one."""
    n_evaluated: int
    """Number of plans that were simulated."""
    baseline: ExecutionPlan | None
    """The plan of `heuristic`; None if it does not fit into memory."""
    baseline_outcome: Outcome | None

    @property
    def gap(self) -> float:
        """By what share of the lower bound the plan may be slower than the best one, at most."""
        return self.outcome.seconds / self.lower_bound - 1.0 if self.lower_bound else 0.0

    @property
    def gain(self) -> float | None:
        """How many times as fast as the plan of `heuristic` it is."""
        return None if self.baseline_outcome is None else self.baseline_outcome.seconds / self.outcome.seconds


def search(
    simulator: Simulator,
    *,
    given: Mapping[str, CallPlan] | None = None,
    fits: Fits = lambda call, layout: None,
    seed: int = 1,
    n_evaluations: int = EVALUATIONS,
    n_partial_plans: int = PARTIAL_PLANS,
) -> SearchResult:
    """The fastest plan that fits into memory.

    Args:
        simulator: the simulator of the job.
        given: plans of calls that are not to be changed.
        fits: raises an error for layouts that are not possible for a call.
        seed: seed of the random choices.
        n_evaluations: changes that annealing tries.
        n_partial_plans: partial plans that the exhaustive search tries before it gives up; 0: none.

    Raises:
        ConfigError: no plan was found that fits into memory; names the rank, the call, and what takes the most.
    """
    graph, given = simulator.graph, given or {}
    candidates = Candidates.of(graph, simulator.costs, simulator.machine, given, fits, bases=simulator.bases)
    fitting = Fitting(simulator, [number for number, call in enumerate(graph.calls) if call.name in given])
    baseline = heuristic(simulator, given, fits)
    limits = _Limits(seed, n_evaluations, n_partial_plans, is_symmetric=_is_symmetric(simulator.machine, given))
    best, bound, is_best = _best(simulator, fitting, candidates, baseline, limits)
    if _lacks_memory(simulator, fitting, candidates, best):
        smaller = Candidates.of(
            graph, simulator.costs, simulator.machine, given, fits, bases=simulator.bases, saving_memory=True
        )
        if smaller != candidates:
            best, bound, is_best = _best(simulator, fitting, smaller, best, limits.shorter)
    best = fitting.with_prefetches(best)
    if best.excess:
        raise ConfigError(f"no plan was found that fits into memory; of the closest one, {misfit(simulator, best)}")
    return SearchResult(
        best.plan(graph),
        best.outcome,
        min(bound, best.outcome.seconds),
        is_best,
        fitting.n_evaluated,
        None if baseline.excess else baseline.plan(graph),
        None if baseline.excess else baseline.outcome,
    )


def _lacks_memory(simulator: Simulator, fitting: Fitting, candidates: Candidates, found: Fitted) -> bool:
    """Whether a plan is what it is for lack of memory: it offloads something, or does not fit, or with a call or a
    role in another layout it would be faster if that had room."""
    if found.excess or any(one.offload for one in found.places):
        return True
    for changed in _changes(simulator, candidates, found):
        other = fitting.without_offloads(simulator.shared(changed))
        if other.excess and other.outcome.seconds < found.outcome.seconds:
            return True
    return False


def _changes(simulator: Simulator, candidates: Candidates, found: Fitted) -> Iterator[list[Place]]:
    """The plans with another layout of a call, or of all calls to a role, on ranks that include those that it has or
    are among them."""
    calls = simulator.graph.calls
    other: dict[tuple[str, Layout], dict[int, Place]] = {}
    for number, call in enumerate(calls):
        first = found.places[number].plan.layout.ranks[0]
        for shape in candidates.shapes[call.name]:
            start = max(start for start in candidates.starts_of(call.name, shape) if start <= first)
            one = simulator.place(number, at(shape, start))
            yield [*found.places[:number], one, *found.places[number + 1 :]]
            other.setdefault((call.role, one.plan.layout.without_fsdp), {}).setdefault(number, one)
    for of_role in other.values():
        if len(of_role) > 1:
            yield [of_role.get(number, one) for number, one in enumerate(found.places)]


class _Limits(NamedTuple):
    """How long the searches are."""

    seed: int
    n_evaluations: int
    n_partial_plans: int
    is_symmetric: bool

    @property
    def shorter(self) -> _Limits:
        """Those of a search that begins with the plan of another one."""
        return self._replace(
            n_evaluations=self.n_evaluations // SHORTER_ANNEALING, n_partial_plans=self.n_partial_plans // SHORTER
        )


def _best(
    simulator: Simulator, fitting: Fitting, candidates: Candidates, known: Fitted, limits: _Limits
) -> tuple[Fitted, float, bool]:
    """The best plan that was found, seconds that none takes less than, and whether all were considered."""
    graph, costs, machine = simulator.graph, simulator.costs, simulator.machine
    starts = [[simulator.place(n, plan) for n, plan in enumerate(one)] for one in _starts(graph, costs, candidates)]
    best = min(known, *(fitting.fitted(simulator.shared(start)) for start in starts), key=_score)
    bound, is_best = _bound(simulator, candidates, machine), False
    if machine.n_ranks <= EXHAUSTIVE_RANKS and limits.n_partial_plans:
        placed = {n: _places(simulator, candidates, n) for n in range(len(graph.calls))}
        exhaustive = Exhaustive(simulator, fitting, placed, limits.n_partial_plans, is_symmetric=limits.is_symmetric)
        best = exhaustive.best(best) or best
        bound, is_best = max(bound, exhaustive.bound), exhaustive.is_complete
        if not best.excess and best.outcome.seconds <= bound * (1 + CLOSE):
            return best, bound, is_best
    if not is_best:
        annealing = Annealing(simulator, fitting, candidates, limits.seed)
        greedy = [annealing.greedy(start, TRIES) for start in (best.bare, known.bare, *starts)]
        best = min(best, *greedy, key=_score)
        best = min(best, annealing.best(best.bare, limits.n_evaluations), key=_score)
        best = min(best, fitting.fitted(best.bare, exact=True), key=_score)
    return best, bound, is_best


def _score(found: Fitted) -> float:
    return found.score


def _places(simulator: Simulator, candidates: Candidates, call: int) -> list[Place]:
    return [simulator.place(call, plan) for plan in candidates.placed(simulator.graph.calls[call].name)]


def _bound(simulator: Simulator, candidates: Candidates, machine: Machine) -> float:
    """The lower bound of a step; calls take as long wherever they are placed."""
    calls = simulator.graph.calls
    shapes = {
        number: [simulator.place(number, plan) for plan in candidates.shapes[call.name]]
        for number, call in enumerate(calls)
    }
    return Bounds.of(simulator.graph, shapes, machine.n_ranks).step


def _is_symmetric(machine: Machine, given: Mapping[str, CallPlan]) -> bool:
    sizes = (machine.n_ranks, machine.ranks_per_node)
    return not given and all(size & (size - 1) == 0 for size in sizes)


def _starts(graph: Graph, costs: CostModel, candidates: Candidates) -> Iterator[list[CallPlan]]:
    """Plans to begin with: every call as fast as can be on all ranks; and roles side by side, each on its part.

    Calls that generate, and so come before all others, are on all ranks.
    """
    n_ranks = max(candidates.starts)
    for n_parts in (1, 2, 4):
        if n_ranks // n_parts not in candidates.starts:
            continue
        plans = []
        for call in graph.calls:
            size = n_ranks if call.kind == "generate" else n_ranks // n_parts
            part = (*graph.trained_roles, *graph.all_roles).index(call.role) % n_parts
            shapes = [one for one in candidates.shapes[call.name] if one.layout.size <= size]
            shapes = shapes or list(candidates.shapes[call.name])
            largest = max(one.layout.size for one in shapes)
            shape = min(
                (one for one in shapes if one.layout.size == largest),
                key=lambda one: costs.call(call.name, one).seconds,
            )
            starts = candidates.starts_of(call.name, shape)
            plans.append(at(shape, starts[min(len(starts) - 1, part * size // largest)]))
        yield plans
