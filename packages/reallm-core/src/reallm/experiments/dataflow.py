"""Walks an algorithm's graph: each call's interface works on the batch, and what it computes joins the batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reallm.algorithms.spec import ModelFunctionCall
from reallm.data.namedarray import NamedArray, merge
from reallm.engine.memory import GIB, peak_memory
from reallm.engine.objective import Totals
from reallm.engine.real_model import ReaLModel
from reallm.engine.train import TrainEngine


@dataclass(frozen=True)
class Role:
    """A model and the interface that says what it does; `engine` if it is trained."""

    interface: Any
    model: ReaLModel
    engine: TrainEngine | None


class Dataflow:
    """The calls of an algorithm in execution order, with the roles that carry them out."""

    def __init__(self, order: Sequence[ModelFunctionCall], roles: Mapping[str, Role]) -> None:
        self._order = order
        self._roles = roles

    def train(self, batch: NamedArray) -> dict[str, float]:
        """One step: every call once. Metrics are named after the train calls: `train/loss` for a call `train`."""
        metrics: dict[str, float] = {}
        for call in self._order:
            role = self._roles[call.role]
            if call.kind != "train_step":
                batch = self._joined(call, batch)
                continue
            started = time.perf_counter()
            numbers = role.interface.train_step(role.engine, batch)
            numbers["tokens_per_s"] = numbers["tokens"] / (time.perf_counter() - started)
            numbers["memory_gib"] = peak_memory(next(role.model.parameters()).device) / GIB
            metrics |= {f"{call.name}/{name}": value for name, value in numbers.items()}
        return metrics

    def evaluate(self, batches: Iterable[NamedArray]) -> dict[str, float]:
        """Metrics of the train calls' objectives over all batches together, as `eval/loss`.

        With several train calls, as `eval/<call>/loss`.
        """
        trained = [call for call in self._order if call.kind == "train_step"]
        totals = {call.name: Totals() for call in trained}
        for part in batches:
            batch = part
            for call in self._order:
                role = self._roles[call.role]
                if call.kind == "train_step":
                    assert role.engine is not None
                    totals[call.name] += role.engine.evaluate([batch], role.interface)
                else:
                    batch = self._joined(call, batch)
        prefix = {call.name: "eval" if len(trained) == 1 else f"eval/{call.name}" for call in trained}
        return {
            f"{prefix[call.name]}/{name}": value
            for call in trained
            for name, value in self._roles[call.role].interface.metrics(totals[call.name]).items()
        }

    def _joined(self, call: ModelFunctionCall, batch: NamedArray) -> NamedArray:
        role = self._roles[call.role]
        return merge([batch, getattr(role.interface, call.kind)(role.model, batch)])
