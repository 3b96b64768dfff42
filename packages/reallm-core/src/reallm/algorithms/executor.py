"""Executes the dataflow graph of an algorithm: the outputs of each call are merged into the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reallm.algorithms.context import CallContext
from reallm.algorithms.eval_totals import EvalTotals
from reallm.algorithms.graph import Graph
from reallm.algorithms.interface import optimizer_steps
from reallm.algorithms.role import Role
from reallm.algorithms.weight_updates import update_weights
from reallm.data.batching import n_samples
from reallm.data.datasets import Samples
from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray, merge
from reallm.errors import PluginError, kind_of
from reallm.machine_memory import peak_memory
from reallm.specs import ModelFunctionCall
from reallm.training.memory import GIB

WEIGHTS_VERSIONS = "weights_versions"
"""Metadata of a batch with generated tokens: role -> the version of the weights that generated them."""


class GraphExecutor:
    """Executes the calls of a graph on batches, by the interfaces of its roles.

    Args:
        graph: the graph.
        roles: the loaded roles, by name.
        interfaces: an instance of the interface of each role, by name.
    """

    def __init__(self, graph: Graph, roles: Mapping[str, Role], interfaces: Mapping[str, Any]) -> None:
        self._graph = graph
        self._roles = roles
        self._interfaces = interfaces
        measured = {call.name for call in graph.calls if hasattr(interfaces[call.role], "eval_metrics")}
        self._eval_calls = graph.eval_calls(measured)

    @property
    def weights_versions(self) -> dict[str, int]:
        """Number of updates that the weights of each trained role have had."""
        return {name: role.engine.weights_version for name, role in self._roles.items() if role.engine is not None}

    def train(self, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """Run one step, every call once, and return the metrics of the train calls.

        Their names begin with `train/` if one call trains, else with the name of the call.
        """
        metrics: dict[str, float] = {}
        for call in self._graph.calls:
            if call.kind != "train_step":
                batch = self.with_outputs(call, batch, context)
                continue
            role = self._roles[call.role]
            started = time.perf_counter()
            numbers = self._interfaces[call.role].train_step(role.engine, batch, context)
            n_steps = optimizer_steps(self._interfaces[call.role])
            update_weights(call, self._roles, (context.step - 1) * n_steps, context.step * n_steps)
            numbers["tokens_per_s"] = numbers["tokens"] / (time.perf_counter() - started)
            numbers["memory_gib"] = peak_memory(role.model.device) / GIB
            prefix = self._graph.metric_prefixes[call.name]
            metrics |= {f"{prefix}/{name}": value for name, value in numbers.items()}
        return metrics

    def evaluate(self, batches: Iterable[NamedArray], context: CallContext) -> dict[str, float]:
        """Metrics over all batches: those of the train calls' objectives, as `eval/loss`, and those that interfaces
        measure, such as `eval/reward`.

        With several train calls, names are `eval/<call>/loss`.
        """
        return self._metrics(self._totals(batches, context))

    def evaluate_samples(
        self, samples: Samples, batches: Callable[[Samples], Iterable[NamedArray]], context: CallContext
    ) -> dict[str, float]:
        """Metrics over all samples of a dataset, and over each source of a mixture.

        Args:
            samples: the dataset.
            batches: function that makes the batches of a dataset.
            context: the run and the step.
        """
        if isinstance(samples, MixedSamples):
            sources = {name: batches(source) for name, source in samples.sources.items()}
            return self.evaluate_sources(sources, context)
        return self.evaluate(batches(samples), context)

    def evaluate_sources(self, sources: Mapping[str, Iterable[NamedArray]], context: CallContext) -> dict[str, float]:
        """Metrics over the batches of all sources, as `evaluate` gives them, and of each one, as `eval/loss/<source>`.

        Args:
            sources: name of a source of a mixture -> its batches.
            context: the run and the step.
        """
        totals = {name: self._totals(batches, context) for name, batches in sources.items()}
        metrics = self._metrics(sum(totals.values(), EvalTotals()))
        for source, of_source in totals.items():
            metrics |= {f"{name}/{source}": value for name, value in self._metrics(of_source).items()}
        return metrics

    def _totals(self, batches: Iterable[NamedArray], context: CallContext) -> EvalTotals:
        """The sums of each train call's objective, and of what interfaces measure, over all batches."""
        totals = EvalTotals()
        for inputs in batches:
            batch = inputs
            for call in self._eval_calls:
                interface = self._interfaces[call.role]
                if call.kind == "train_step":
                    evaluator = self._roles[call.role].evaluator
                    assert evaluator is not None
                    totals += EvalTotals({call.name: evaluator.evaluate([batch], interface)})
                    continue
                batch = self.with_outputs(call, batch, context)
                if hasattr(interface, "eval_metrics"):
                    totals += EvalTotals(measured=interface.eval_metrics(batch))
        return totals

    def _metrics(self, totals: EvalTotals) -> dict[str, float]:
        prefixes = self._graph.eval_prefixes
        metrics = {
            f"{prefixes[call.name]}/{name}": value
            for call in self._graph.objective_calls
            for name, value in self._interfaces[call.role].metrics(totals.objectives[call.name]).items()
        }
        return metrics | {f"eval/{name}": value for name, value in totals.means().items()}

    def with_outputs(self, call: ModelFunctionCall, batch: NamedArray, context: CallContext) -> NamedArray:
        """The batch with the output keys of a call that does not train."""
        if all(key in batch for key in call.outputs):  # computed before training
            return batch
        interface = self._interfaces[call.role]
        if call.kind == "reward":
            outputs = interface.reward(batch, context)
        else:
            outputs = getattr(interface, call.kind)(self._roles[call.role].model, batch, context)
        _check_outputs(call, outputs, batch)
        batch = merge([batch, outputs])
        if call.kind != "generate":
            return batch
        versions = {**batch.metadata.get(WEIGHTS_VERSIONS, {}), call.role: context.weights_versions.get(call.role, 0)}
        return batch.with_metadata(**{WEIGHTS_VERSIONS: versions})


def _check_outputs(call: ModelFunctionCall, outputs: Any, batch: NamedArray) -> None:
    """Check what an interface returned.

    Raises:
        PluginError: it is not a batch with the call's output keys for the samples of the input.
    """
    where = f"the interface of '{call.role}': {call.kind} for the call '{call.name}' returned"
    if not isinstance(outputs, NamedArray):
        raise PluginError(f"{where} {kind_of(outputs)}, not a NamedArray")
    missing = [key for key in call.outputs if key not in outputs]
    if missing:
        raise PluginError(f"{where} no '{missing[0]}', which the graph says it writes; it has {', '.join(outputs)}")
    extra = [key for key in outputs if key not in call.outputs]
    if extra:
        raise PluginError(f"{where} '{extra[0]}', which is not among the call's outputs, {', '.join(call.outputs)}")
    if n_samples(outputs) != n_samples(batch):
        raise PluginError(f"{where} {n_samples(outputs)} samples for a batch of {n_samples(batch)}")
