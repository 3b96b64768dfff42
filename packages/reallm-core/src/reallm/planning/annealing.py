"""`Annealing`: simulated annealing, and greedy changes, over the plans that candidates allow."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from reallm.planning.candidates import Candidates, at
from reallm.planning.execution_plan import CallPlan
from reallm.planning.offloading import Fitted, Fitting
from reallm.planning.places import Place
from reallm.planning.simulator import Simulator

HOT, COLD = 0.1, 0.001
"""First and last temperature, as shares of the time of a step."""
LEAST_GAIN = 0.001
"""Share of a step that a round of greedy changes must save for another one to follow."""


class Annealing:
    """Changes one call at a time, and keeps changes that make a step faster, or at first not much slower.

    Args:
        simulator: the simulator.
        fitting: evaluates plans.
        candidates: what may be chosen.
        seed: the same seed makes the same choices.
    """

    def __init__(self, simulator: Simulator, fitting: Fitting, candidates: Candidates, seed: int) -> None:
        self._simulator, self._fitting, self._candidates = simulator, fitting, candidates
        self._calls = simulator.graph.calls
        self._free = [number for number, call in enumerate(self._calls) if self._n_choices(number) > 1]
        self._random = random.Random(seed)
        self._places: dict[tuple[int, int, int], Place] = {}

    def best(self, start: Sequence[Place], n_changes: int) -> Fitted:
        """The best plan that was seen.

        Args:
            start: the places of all calls to begin with.
            n_changes: number of changes that are tried.
        """
        now, state = self._fitted(start), list(start)
        best = now
        for number in range(n_changes if self._free else 0):
            temperature = HOT * (COLD / HOT) ** (number / n_changes)
            changed, luck = self._changed(state), self._random.random()
            # changes that make a step slower by less than this share are kept
            allowed = -temperature * math.log(luck) if luck else math.inf
            found = self._fitted_below(changed, now.score * (1 + allowed))
            if found is not None:
                state, now = changed, found
                if found.score < best.score:
                    best = found
        return best

    def greedy(self, start: Sequence[Place], n_tries: int) -> Fitted:
        """The plan after the best of some changes of each call in turn, as long as a round of them helps.

        Args:
            start: the places of all calls to begin with.
            n_tries: number of choices for a call that are tried; if there are more, some drawn at random.
        """
        state, now = list(start), self._fitted(start)
        while True:
            before = now.score
            for call in self._free:
                for choice in self._choices(call, n_tries):
                    changed = [*state[:call], choice, *state[call + 1 :]]
                    found = self._fitted_below(changed, now.score)
                    if found is not None:
                        state, now = changed, found
            if now.score > (1 - LEAST_GAIN) * before:
                return now

    def _fitted(self, places: Sequence[Place]) -> Fitted:
        return self._fitting.fitted(self._simulator.shared(places))

    def _fitted_below(self, places: Sequence[Place], limit: float) -> Fitted | None:
        return self._fitting.fitted_below(self._simulator.shared(places), limit)

    def _shapes(self, call: int) -> Sequence[CallPlan]:
        return self._candidates.shapes[self._calls[call].name]

    def _starts(self, call: int, shape: CallPlan) -> Sequence[int]:
        return self._candidates.starts_of(self._calls[call].name, shape)

    def _n_choices(self, call: int) -> int:
        return sum(len(self._starts(call, shape)) for shape in self._shapes(call))

    def _choices(self, call: int, n: int) -> list[Place]:
        if self._n_choices(call) > n:
            return [self._drawn(call) for _ in range(n)]
        return [self._at(call, shape, start) for shape in self._shapes(call) for start in self._starts(call, shape)]

    def _at(self, call: int, shape: CallPlan, start: int) -> Place:
        """The place of a call with a shape on the ranks from a first one on."""
        key = (call, id(shape), start)
        if key not in self._places:
            self._places[key] = self._simulator.place(call, at(shape, start))
        return self._places[key]

    def _drawn(self, call: int) -> Place:
        """A random place of a call: each size and layout as likely as any other, then the ranks."""
        shape = self._random.choice(self._shapes(call))
        return self._at(call, shape, self._random.choice(self._starts(call, shape)))

    def _changed(self, state: Sequence[Place]) -> list[Place]:
        """A plan that differs in one call."""
        changed, draw = list(state), self._random.random()
        call = self._random.choice(self._free)
        if draw < 0.5:
            changed[call] = self._drawn(call)
            return changed
        other = state[self._random.choice(self._free)].plan
        start = other.layout.ranks[0]
        if draw < 0.65:  # the layout and the ranks of another call
            shapes = [one for one in self._shapes(call) if _sizes(one) == _sizes(other)]
        elif draw < 0.8:  # its ranks
            shapes = [one for one in self._shapes(call) if one.layout.size == other.layout.size]
        else:  # the same layout elsewhere
            shapes = [one for one in self._shapes(call) if _sizes(one) == _sizes(state[call].plan)]
            if shapes:
                start = self._random.choice(self._starts(call, shapes[0]))
        if shapes and start in self._starts(call, shapes[0]):
            changed[call] = self._at(call, self._random.choice(shapes), start)
        return changed


def _sizes(plan: CallPlan) -> tuple[int, int, int]:
    return plan.layout.dp, plan.layout.tp, plan.layout.pp
