"""The dataflow graph of an algorithm, and its execution: the outputs of each call are merged into the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import torch

from reallm.config.args import ModelArgs
from reallm.data.datasets import Samples
from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray, merge
from reallm.engine.real_model import ReaLModel
from reallm.errors import PluginError
from reallm.machine_memory import peak_memory
from reallm.model.parameters import n_parameters
from reallm.specs import Algorithm, ModelFunctionCall
from reallm.training.engine import TrainEngine
from reallm.training.eval_engine import EvalEngine
from reallm.training.memory import GIB
from reallm.training.objective import Totals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Graph:
    """The calls of an algorithm in execution order."""

    calls: tuple[ModelFunctionCall, ...]

    @classmethod
    def of(cls, algorithm: Algorithm) -> Graph:
        """The graph of an algorithm.

        Raises:
            PluginError: see `execution_order`.
        """
        return cls(tuple(execution_order(algorithm.graph)))

    @property
    def roles(self) -> list[str]:
        """All roles, in the order in which they are first called."""
        return list(dict.fromkeys(call.role for call in self.calls))

    @property
    def trained_roles(self) -> list[str]:
        """The roles with a `train_step`, in the same order."""
        return list(dict.fromkeys(call.role for call in self.train_calls))

    @property
    def train_calls(self) -> list[ModelFunctionCall]:
        """The calls that train."""
        return [call for call in self.calls if call.kind == "train_step"]

    @property
    def eval_prefixes(self) -> dict[str, str]:
        """Prefix of an evaluation's metrics, by the train call whose objective gives them."""
        calls = self.train_calls
        return {call.name: "eval" if len(calls) == 1 else f"eval/{call.name}" for call in calls}

    def eval_metric_names(self, interfaces: Mapping[str, Any]) -> list[str] | None:
        """The metrics that an evaluation may give; None if the interface of a train call does not declare its own.

        Args:
            interfaces: interface class or instance by role.
        """
        prefixes, names = self.eval_prefixes, []
        for call in self.train_calls:
            declared = getattr(interfaces[call.role], "metric_names", None)
            if declared is None:
                return None
            names += [f"{prefixes[call.name]}/{name}" for name in declared]
        return names


@dataclass(frozen=True)
class Role:
    """A loaded model and the interface that implements its calls."""

    interface: Any
    model: ReaLModel
    engine: TrainEngine | None
    """The training engine; None for a model that is not trained."""
    evaluator: EvalEngine | None
    """Computes the metrics of evaluations: the training engine, if there is one; None without an objective."""
    args: ModelArgs
    checkpoint_dtype: torch.dtype
    """The dtype of the checkpoint that the model was loaded from, in which it is saved again."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """The tokenizer to save with the model; None: that of its checkpoint."""

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the whole model, not only of this rank's part."""
        if self.model.mesh is not None:
            return n_parameters(self.model.config)
        return sum(parameter.numel() for parameter in self.model.parameters())


class GraphExecutor:
    """Executes the calls of a graph on batches, by the interfaces of its roles."""

    def __init__(self, graph: Graph, roles: Mapping[str, Role]) -> None:
        self._graph = graph
        self._roles = roles

    def train(self, batch: NamedArray) -> dict[str, float]:
        """Run one step, every call once. Metrics are named after the train calls: `train/loss` for a call `train`."""
        metrics: dict[str, float] = {}
        for call in self._graph.calls:
            role = self._roles[call.role]
            if call.kind != "train_step":
                batch = self._with_outputs(call, batch)
                continue
            started = time.perf_counter()
            numbers = role.interface.train_step(role.engine, batch)
            numbers["tokens_per_s"] = numbers["tokens"] / (time.perf_counter() - started)
            numbers["memory_gib"] = peak_memory(next(role.model.parameters()).device) / GIB
            metrics |= {f"{call.name}/{name}": value for name, value in numbers.items()}
        return metrics

    def evaluate(self, batches: Iterable[NamedArray]) -> dict[str, float]:
        """Metrics of the train calls' objectives over all batches, as `eval/loss`.

        With several train calls, names are `eval/<call>/loss`.
        """
        return self._metrics(self._totals(batches))

    def evaluate_samples(
        self, samples: Samples, batches: Callable[[Samples], Iterable[NamedArray]]
    ) -> dict[str, float]:
        """Metrics over all samples of a dataset, and over each source of a mixture.

        Args:
            samples: the dataset.
            batches: function that makes the batches of a dataset.
        """
        if isinstance(samples, MixedSamples):
            return self.evaluate_sources({name: batches(source) for name, source in samples.sources.items()})
        return self.evaluate(batches(samples))

    def evaluate_sources(self, sources: Mapping[str, Iterable[NamedArray]]) -> dict[str, float]:
        """Metrics over the batches of all sources, as `evaluate` gives them, and of each one, as `eval/loss/<source>`.

        Args:
            sources: name of a source of a mixture -> its batches.
        """
        totals = {name: self._totals(batches) for name, batches in sources.items()}
        together = {
            call.name: sum((of_source[call.name] for of_source in totals.values()), Totals())
            for call in self._graph.train_calls
        }
        metrics = self._metrics(together)
        for source, of_source in totals.items():
            metrics |= {f"{name}/{source}": value for name, value in self._metrics(of_source).items()}
        return metrics

    def _totals(self, batches: Iterable[NamedArray]) -> dict[str, Totals]:
        """The sums of each train call's objective over all batches."""
        totals = {call.name: Totals() for call in self._graph.train_calls}
        for inputs in batches:
            batch = inputs
            for call in self._graph.calls:
                role = self._roles[call.role]
                if call.kind == "train_step":
                    assert role.evaluator is not None
                    totals[call.name] += role.evaluator.evaluate([batch], role.interface)
                else:
                    batch = self._with_outputs(call, batch)
        return totals

    def _metrics(self, totals: Mapping[str, Totals]) -> dict[str, float]:
        prefixes = self._graph.eval_prefixes
        return {
            f"{prefixes[call.name]}/{name}": value
            for call in self._graph.train_calls
            for name, value in self._roles[call.role].interface.metrics(totals[call.name]).items()
        }

    def _with_outputs(self, call: ModelFunctionCall, batch: NamedArray) -> NamedArray:
        """The batch with the output keys of a call that does not train."""
        role = self._roles[call.role]
        return merge([batch, getattr(role.interface, call.kind)(role.model, batch)])


def execution_order(graph: Sequence[ModelFunctionCall]) -> list[ModelFunctionCall]:
    """Sort the calls so that each follows those that write the keys it reads; other keys come from the dataset.

    Raises:
        PluginError: two calls have the same name or write the same key, or calls depend on each other in a cycle.
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
