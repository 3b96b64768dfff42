"""Walks an algorithm's graph: each call's interface works on the batch, and what it computes joins the batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import torch

from reallm.config.args import ModelArgs
from reallm.data.namedarray import NamedArray, merge
from reallm.engine.real_model import ReaLModel
from reallm.errors import PluginError
from reallm.model.parameters import n_parameters
from reallm.specs import ModelFunctionCall
from reallm.training.engine import TrainEngine
from reallm.training.memory import GIB, peak_memory
from reallm.training.objective import Totals

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Role:
    """A model and the interface that says what it does; `engine` if it is trained."""

    interface: Any
    model: ReaLModel
    engine: TrainEngine | None


class GraphExecutor:
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


def execution_order(graph: Sequence[ModelFunctionCall]) -> list[ModelFunctionCall]:
    """The calls in an order that respects their keys; keys that no call writes come with the data.

    Raises:
        PluginError: two calls have one name or write the same key, or calls wait for each other in a circle.
    """
    calls: dict[str, ModelFunctionCall] = {}
    writers: dict[str, str] = {}
    for call in graph:
        if call.name in calls:
            raise PluginError(f"two calls of the algorithm are named '{call.name}'")
        calls[call.name] = call
        for key in call.outputs:
            if key in writers:
                raise PluginError(f"calls '{writers[key]}' and '{call.name}' of the algorithm both write '{key}'")
            writers[key] = call.name
    waits_for = {call.name: [writers[key] for key in call.inputs if key in writers] for call in graph}
    try:
        return [calls[name] for name in TopologicalSorter(waits_for).static_order()]
    except CycleError as error:
        raise PluginError(f"calls of the algorithm wait for each other: {' <- '.join(error.args[1])}") from error


@dataclass(frozen=True)
class LoadedModel:
    """A role with its model; `stored_dtype` is that of its checkpoint, in which it is saved."""

    role: Role
    args: ModelArgs
    stored_dtype: torch.dtype

    @property
    def n_parameters(self) -> int:
        """Numbers in the whole model."""
        if self.role.model.mesh is not None:
            return n_parameters(self.role.model.config)
        return sum(parameter.numel() for parameter in self.role.model.parameters())
