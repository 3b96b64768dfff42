"""Executes the dataflow graph of an algorithm: the outputs of each call are merged into the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, replace
from typing import Any

import torch.distributed as dist

from reallm.algorithms.clocks import shared_zero
from reallm.algorithms.context import CallContext
from reallm.algorithms.eval_totals import EvalTotals
from reallm.algorithms.exchange import broadcast
from reallm.algorithms.execution import Execution, OnCall, to_compute
from reallm.algorithms.graph import Graph
from reallm.algorithms.messenger import Messenger
from reallm.algorithms.owner import errors_name
from reallm.algorithms.placement import Placement
from reallm.algorithms.result_exchange import ResultExchange
from reallm.algorithms.role import Role
from reallm.algorithms.rollout_queue import RolloutQueue
from reallm.algorithms.timeline import END_OF_STEP, Span, Timeline, in_order
from reallm.algorithms.weight_moves import WeightMoves
from reallm.data.datasets import Samples
from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray
from reallm.errors import NonFiniteError, PluginError
from reallm.launch.job import Job
from reallm.machine_memory import peak_memory
from reallm.parallel.object_collectives import all_gather_json
from reallm.specs import ModelFunctionCall
from reallm.training.memory import GIB


class GraphExecutor:
    """Executes the calls of a graph on batches, by the interfaces of its roles.

    Args:
        graph: the graph.
        roles: the loaded roles, by name.
        interfaces: an instance of the interface of each role, by name.
        placement: where calls are computed.
        async_steps: steps between the making of a rollout and the training on it.
        job: the processes of the run, which are told what this rank is doing; None: nobody is.
    """

    def __init__(
        self,
        graph: Graph,
        roles: Mapping[str, Role],
        interfaces: Mapping[str, Any],
        placement: Placement,
        async_steps: int = 0,
        job: Job | None = None,
    ) -> None:
        self._graph = graph
        self._roles = roles
        self._interfaces = interfaces
        self._placement = placement
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self.queue = RolloutQueue(placement, self._rank, async_steps)
        """The rollouts of later steps."""
        self._job = job or Job()
        self._messenger, self._timeline = Messenger(self._rank, self._job), Timeline(self._rank, shared_zero())
        self._weights = WeightMoves(roles, self._rank, self._timeline)
        self._step_began = 0.0
        self._results = ResultExchange(graph, self._placement, interfaces, self._rank)
        measured = {call.name for call in graph.calls if hasattr(interfaces[call.role], "eval_metrics")}
        self._eval_calls = graph.eval_calls(measured)
        self._versions: dict[str, int] = {}
        """Versions of the weights that other ranks train."""

    @property
    def weights_versions(self) -> dict[str, int]:
        """Number of updates that the weights of each trained role have had."""
        return {name: self._versions.get(name, 0) for name in self._graph.trained_roles} | self._local_versions

    @property
    def _local_versions(self) -> dict[str, int]:
        return {name: role.engine.weights_version for name, role in self._roles.items() if role.engine is not None}

    def spans(self) -> list[Span]:
        """What all ranks have done in the last step, by time; all ranks of the job call it."""
        own = self._timeline.since(self._step_began)
        if not dist.is_initialized():
            return own
        assert dist.group.WORLD is not None
        by_rank = all_gather_json([astuple(span) for span in own], dist.group.WORLD)
        return in_order(Span(*values) for of_rank in by_rank.values() for values in of_rank)

    def restore_versions(self, versions: Mapping[str, int]) -> None:
        """Set the versions that a resumed run begins with, for the ranks that do not train the role themselves."""
        self._versions = dict(versions)

    def train(
        self, batch: NamedArray, context: CallContext, ahead: Mapping[int, NamedArray] | None = None
    ) -> dict[str, float]:
        """Run one step, every call once, and return the metrics of the train calls, and of calls with `call_metrics`.

        Their names begin with `train/` if one call trains, else with the name of the call. All ranks get them,
        whichever of them compute the call. What train calls have kept of their rollouts is in `context.kept_rollouts`
        on rank 0.

        Args:
            batch: the samples of the step.
            context: the run and the step.
            ahead: the samples of later steps, by step, whose rollouts are made in this one, before it trains. The
                rollout of this step is then that of an earlier one; without any, it is made first.

        Raises:
            NonFiniteError: a loss, a gradient or what a model generates is not finite. Raised on all ranks, if not all
                of them compute all calls.
        """
        metrics: dict[str, dict[str, float]] = {}

        def train(call: ModelFunctionCall, batch: NamedArray, context: CallContext) -> None:
            role = self._roles[call.role]
            if role.engine is not None:
                role.engine.max_tokens_per_microbatch = context.max_tokens_per_microbatch
            started = time.perf_counter()
            numbers = self._interfaces[call.role].train_step(role.engine, batch, context)
            if not isinstance(numbers, dict) or "tokens" not in numbers:
                raise PluginError(
                    f"the interface of '{call.role}': train_step for the call '{call.name}' must return a dict of "
                    f"metrics with 'tokens', as engine.train_batch does, not {numbers!r}"
                )
            numbers["tokens_per_s"] = numbers["tokens"] / (time.perf_counter() - started)
            numbers["memory_gib"] = peak_memory(role.model.device) / GIB
            prefix = self._graph.metric_prefixes[call.name]
            metrics[call.name] = {f"{prefix}/{name}": value for name, value in numbers.items()}

        def computed(call: ModelFunctionCall, batch: NamedArray, context: CallContext) -> None:
            interface = self._interfaces[call.role]
            if hasattr(interface, "call_metrics"):
                prefix = self._graph.metric_prefix(call.name)
                metrics[call.name] = {f"{prefix}/{name}": value for name, value in interface.call_metrics().items()}

        self._step_began = time.perf_counter()
        with errors_name(self._graph.owner):
            made, errors = self._run_step(batch, context, ahead or {}, train, computed)
        with self._timeline.span("wait", END_OF_STEP):
            self._messenger.finish()
            metrics, self._versions = self._results.after_step(
                metrics, self._local_versions, errors, context.kept_rollouts
            )
        self.queue.put(made, done=context.step)
        return {name: value for call in self._graph.calls for name, value in metrics.get(call.name, {}).items()}

    def _run_step(
        self, batch: NamedArray, context: CallContext, ahead: Mapping[int, NamedArray], train: OnCall, computed: OnCall
    ) -> tuple[dict[int, NamedArray], dict[str, NonFiniteError]]:
        """Run the calls of a step; returns the rollouts of later steps, and the errors of calls.

        What this step trains on is sent before rollouts are made, so that ranks that only train need not wait.
        """
        if not ahead and context.step not in self.queue.steps:
            execution = self._execution()
            execution.run(self._graph.calls, batch, context, train=train, computed=computed)
            return {}, execution.errors
        made: dict[int, NamedArray] = {}
        errors: dict[str, NonFiniteError] = {}

        def make(step: int, samples: NamedArray) -> Execution:
            making, of_step = self._execution(), replace(context, step=step)
            made[step] = making.run(self.queue.calls, samples, of_step, train=_refuse, computed=computed)
            errors.update(making.errors)
            return making

        if context.step in self.queue.steps:
            execution, rollout = self._execution(), self.queue.rollout(context.step, batch)
        else:
            execution = make(context.step, batch)
            rollout = made.pop(context.step)
        calls = to_compute([call for call in self._graph.calls if call not in self.queue.calls], rollout)
        exchange = execution.begin(calls, rollout, self.queue.calls, samples=batch)
        for step, samples in ahead.items():
            make(step, samples)
        execution.run(calls, rollout, context, train=train, computed=computed, exchange=exchange)
        return made, errors | execution.errors

    def with_outputs(self, call: ModelFunctionCall, batch: NamedArray, context: CallContext) -> NamedArray:
        """The batch with the output keys of a call that does not train; on all ranks, whichever compute it."""
        found: list[NamedArray] = [batch]
        execution = self._execution()
        execution.run([call], batch, context, train=_refuse, computed=lambda _, batch, __: found.append(batch))
        error = execution.errors.get(call.name)
        if not self._placement.is_whole(call.name):
            return broadcast(found[-1] if error is None else error, self._placement.ranks(call.name)[0])
        if error is not None:
            raise error
        return found[-1]

    def _execution(self) -> Execution:
        return Execution(
            self._roles, self._interfaces, self._placement, self._weights, self._messenger, self._timeline, self._job
        )

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
        totals = {call.name: EvalTotals() for call in self._eval_calls}
        execution = self._execution()

        def evaluate(call: ModelFunctionCall, batch: NamedArray, context: CallContext) -> None:
            evaluator = self._roles[call.role].evaluator
            assert evaluator is not None
            evaluator.max_tokens_per_microbatch = context.max_tokens_per_microbatch
            found = evaluator.evaluate([batch], self._interfaces[call.role])
            totals[call.name] += EvalTotals({call.name: found})

        def measure(call: ModelFunctionCall, batch: NamedArray, context: CallContext) -> None:
            interface = self._interfaces[call.role]
            if hasattr(interface, "eval_metrics"):
                totals[call.name] += EvalTotals(measured=interface.eval_metrics(batch, context))

        for batch in batches:
            with errors_name(self._graph.owner):
                execution.run(self._eval_calls, batch, context, train=evaluate, computed=measure)
            self._messenger.finish_earlier()  # of the batch before, so that no rank is far ahead of another
        self._messenger.finish()
        return EvalTotals.of_calls(self._results.after_evaluation(totals, execution.errors).values())

    def _metrics(self, totals: EvalTotals) -> dict[str, float]:
        prefixes = self._graph.eval_prefixes
        metrics = {
            f"{prefixes[call.name]}/{name}": value
            for call in self._graph.objective_calls
            for name, value in self._interfaces[call.role].metrics(totals.objectives[call.name]).items()
        }
        return metrics | {f"eval/{name}": value for name, value in totals.means().items()}


def _refuse(call: ModelFunctionCall, batch: NamedArray, context: CallContext) -> None:
    raise AssertionError(f"'{call.name}' trains, and has no outputs")
