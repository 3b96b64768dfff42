"""`EvalTotals`: sums over validation data, from which the metrics of an evaluation follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reallm.errors import PluginError
from reallm.training.objective import Totals


@dataclass(frozen=True)
class EvalTotals:
    """Sums over some of the validation data; those of several parts of it are added."""

    objectives: Mapping[str, Totals] = field(default_factory=dict)
    """Totals of an objective, by train call."""
    measured: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Numbers that interfaces have measured, by name; those that are NaN count as not measured."""

    def __add__(self, other: EvalTotals) -> EvalTotals:
        objectives = dict(self.objectives)
        for name, totals in other.objectives.items():
            objectives[name] = objectives.get(name, Totals()) + totals
        measured = {name: list(values) for name, values in self.measured.items()}
        for name, values in other.measured.items():
            measured.setdefault(name, []).extend(values)
        return EvalTotals(objectives, measured)

    @classmethod
    def of_calls(cls, totals: Iterable[EvalTotals]) -> EvalTotals:
        """The totals of several calls on the same data. Numbers of the same name are added for each sequence, where NaN
        counts as 0 unless all are.

        Raises:
            PluginError: two calls have measured different sequences under the same name.
        """
        objectives: dict[str, Totals] = {}
        measured: dict[str, list[float]] = {}
        for of_call in totals:
            objectives |= of_call.objectives
            for name, values in of_call.measured.items():
                found = measured.setdefault(name, [math.nan] * len(values))
                if len(found) != len(values):
                    raise PluginError(
                        f"two interfaces measure eval/{name}, of {len(found)} and {len(values)} sequences; "
                        "eval_metrics must give a number for each, or NaN"
                    )
                measured[name] = list(map(_added, found, values))
        return cls(objectives, measured)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvalTotals:
        """The totals that `dataclasses.asdict` has made plain."""
        objectives = {name: Totals(**totals) for name, totals in value["objectives"].items()}
        return cls(objectives, value["measured"])

    def means(self) -> dict[str, float]:
        """The mean of each measured number; NaN if there is none."""
        return {name: _mean([one for one in values if not math.isnan(one)]) for name, values in self.measured.items()}


def _added(a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else a + b


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
