"""`Execution`: executes calls on a batch, those of them that are this rank's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reallm.algorithms.call_outputs import WEIGHTS_VERSIONS, check_outputs, merged
from reallm.algorithms.context import CallContext
from reallm.algorithms.exchange import Exchange
from reallm.algorithms.finite_outputs import check_finite
from reallm.algorithms.interface import optimizer_steps
from reallm.algorithms.messenger import Messenger
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.algorithms.schedule import Compute, Move, Offload, Reload, Update, schedule
from reallm.algorithms.timeline import Timeline
from reallm.algorithms.weight_moves import WeightMoves
from reallm.algorithms.weight_updates import due_updates
from reallm.data.namedarray import NamedArray, split
from reallm.errors import NonFiniteError
from reallm.launch.job import Job
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall, WeightUpdate
from reallm.training.nonfinite import sample_names

OnCall = Callable[[ModelFunctionCall, NamedArray, CallContext], None]
"""Function of a call, the batch, and the context of the call."""


class Execution:
    """Executes calls on batches, those of them that are this rank's.

    Every rank goes through the same `schedule`, takes part in what names it, and waits for others only where it needs
    what they have. After a call its copy of the model is offloaded if the placement says so.

    Numbers that are not finite end a call on all of its ranks alike. If other ranks have no part in it, the call and
    those that read what it writes are left out, and the error is kept in `errors`, for all ranks to raise together.

    Args:
        roles: the loaded roles, by name.
        interfaces: an instance of the interface of each role, by name.
        placement: where calls are computed.
        weights: moves weights between copies of models.
        messenger: sends outputs of calls to other ranks; what it has sent may still be on its way after an execution.
        timeline: records what this rank does.
        job: the processes of the run, which are told what this rank is doing.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        interfaces: Mapping[str, Any],
        placement: Placement,
        weights: WeightMoves,
        messenger: Messenger,
        timeline: Timeline,
        job: Job,
    ) -> None:
        self._roles, self._interfaces, self._placement, self._rank = roles, interfaces, placement, messenger.rank
        self._weights, self._messenger, self._timeline, self._job = weights, messenger, timeline, job
        self.errors: dict[str, NonFiniteError] = {}
        """Calls of this rank that could not be made -> why."""

    def run(
        self,
        calls: Sequence[ModelFunctionCall],
        batch: NamedArray,
        context: CallContext,
        *,
        train: OnCall,
        computed: OnCall = lambda call, batch, context: None,
        exchange: Exchange | None = None,
    ) -> NamedArray:
        """Execute calls in order, except those whose outputs the batch has already.

        Args:
            calls: the calls.
            batch: the samples.
            context: the run and the step.
            train: does a `train_step`, given its inputs.
            computed: called after any other call, with the batch that has its outputs.
            exchange: the messages, if `begin` has begun them.

        Returns:
            The batch with what this rank has computed or received.
        """
        calls = to_compute(calls, batch)
        exchange = exchange or self.begin(calls, batch, samples=batch)
        failed = {call.name: self.errors[call.name] for call in exchange.made if call.name in self.errors}
        run = _Run(calls, batch, context, exchange, train, computed, failed)
        updates = self._due_updates(calls, context) if context.training else None
        for action in schedule(self._placement, calls, self._weights.behind(), updates):
            is_here = self._rank in action.ranks
            if isinstance(action, Move):
                if is_here:
                    self._job.announce(f"in a move of the weights of '{action.role}'")
                self._weights.move(action)
            elif isinstance(action, Update):
                self._update(action, run)
            elif isinstance(action, Offload) and is_here:
                self._weights.offload(*self._copy_of(action.call), trained=_trains(action.call, context))
            elif isinstance(action, Reload) and is_here:
                self._weights.make_room()
                self._weights.reload(*self._copy_of(action.call), trained=_trains(action.call, context))
            elif isinstance(action, Compute):
                if is_here:
                    self._compute(action.call, run)
                self._note_training(action.call, run)
        self._job.announce("after its last call")
        self.errors = run.failed | self.errors
        return run.batch

    def begin(
        self,
        calls: Sequence[ModelFunctionCall],
        batch: NamedArray,
        made: Sequence[ModelFunctionCall] = (),
        *,
        samples: NamedArray,
    ) -> Exchange:
        """The messages of calls that are executed later; what others need of those made before is sent now.

        Args:
            calls: the calls; see `to_compute`.
            batch: the samples, with what this rank's calls of those made before have written.
            made: the calls that were executed before.
            samples: the samples, as all ranks have them.
        """
        exchange = Exchange(self._placement, calls, self._messenger, self._timeline, samples, made)
        for call in made:
            if self._rank in self._placement.ranks(call.name):
                exchange.send(call.name, self.errors.get(call.name, batch))
        return exchange

    def _due_updates(self, calls: Sequence[ModelFunctionCall], context: CallContext) -> dict[str, list[WeightUpdate]]:
        """The updates of other roles' weights that follow each call that trains."""
        found = {}
        for call in calls:
            if call.kind == "train_step":
                n_steps = optimizer_steps(self._interfaces[call.role])
                found[call.name] = due_updates(call, (context.step - 1) * n_steps, context.step * n_steps)
        return found

    def _compute(self, call: ModelFunctionCall, run: _Run) -> None:
        """Receive what a call reads, make it, and send what it has written, or the error in its place."""
        self._job.announce(f"in call '{call.name}'")
        self._weights.make_room()
        if call.kind != "reward":
            self._weights.reload(*self._copy_of(call), trained=_trains(call, run.context))
        received, errors = run.exchange.receive(call.name)
        run.failed |= errors
        for parts in received.values():
            run.batch = merged(run.batch, parts)
        try:
            for key in call.inputs:
                if run.writers.get(key) in run.failed:
                    raise run.failed[run.writers[key]]
            self._weights.begin_call(call)
            with self._timeline.span("call", call.name):
                self._make(call, run)
            run.exchange.send(call.name, run.batch)
        except NonFiniteError as raised:
            if self._placement.covers_job:
                raise
            run.failed[call.name] = raised
            run.exchange.send(call.name, raised)

    def _copy_of(self, call: ModelFunctionCall) -> tuple[ModelFunctionCall, Layout]:
        return call, self._placement.layouts[call.name]

    def _make(self, call: ModelFunctionCall, run: _Run) -> None:
        """Make a call; the batch gets the outputs of one that does not train."""
        role = self._roles.get(call.role)
        max_tokens = None if role is None else role.args.max_tokens_per_microbatch
        context = run.context.for_call(call.name, self._placement.max_tokens.get(call.name, max_tokens))
        inputs = split(run.batch, [call.inputs])[0]  # other ranks may have no other keys
        if call.kind == "train_step":
            run.train(call, inputs, context)
            return
        model = None if role is None else role.replicas.at(self._placement.layouts[call.name])
        with nullcontext() if role is None else role.in_place(model, self._roles):
            outputs = self._outputs(call, model, inputs, context)
        if call.kind == "generate":
            outputs = outputs.with_metadata(
                **{WEIGHTS_VERSIONS: {call.role: context.weights_versions.get(call.role, 0)}}
            )
        run.batch = merged(run.batch, [outputs])
        run.computed(call, run.batch, context)

    def _note_training(self, call: ModelFunctionCall, run: _Run) -> None:
        """Note that copies are behind the weights that a call has trained, and the version that later calls see.

        On ranks without a part in the call too, and if it has failed as well: they do not know of it yet.
        """
        if call.kind == "train_step" and run.context.training:
            self._roles[call.role].replicas.weights_changed()
            run.context = run.context.after_updates(call.role, optimizer_steps(self._interfaces[call.role]))

    def _update(self, action: Update, run: _Run) -> None:
        """Have the weights of another role follow, but not if the training has failed: its ranks tell the others."""
        call, trained = action.call.name, self._placement.ranks(action.call.name)
        if self._rank in action.ranks:
            self._job.announce(f"in a move of the weights of '{action.call.role}' to '{action.update.target}'")
            others = [rank for rank in action.ranks if rank not in trained]
            if self._rank == trained[0]:
                run.exchange.tell(call, call in run.failed, others)
            if not (run.exchange.hear(call, trained[0]) if self._rank in others else call in run.failed):
                self._weights.update(action)
        self._roles[action.update.target].replicas.weights_changed()

    def _outputs(self, call: ModelFunctionCall, model: Any, batch: NamedArray, context: CallContext) -> NamedArray:
        """What the interface computes in a call that does not train."""
        interface = self._interfaces[call.role]
        if call.kind == "reward":
            outputs = interface.reward(batch, context)
        else:
            outputs = getattr(interface, call.kind)(model, batch, context)
        check_outputs(call, outputs, batch)
        assert isinstance(outputs, NamedArray)
        if context.training:
            check_finite(call, outputs, self._placement.graph.trained_keys, sample_names(batch))
        return outputs


@dataclass
class _Run:
    """One execution of calls on a batch, as it goes on."""

    calls: Sequence[ModelFunctionCall]
    batch: NamedArray
    """The samples, with what this rank has computed or received."""
    context: CallContext
    exchange: Exchange
    train: OnCall
    computed: OnCall
    failed: dict[str, NonFiniteError]
    """The calls that could not be made, as far as this rank knows -> why."""

    @cached_property
    def writers(self) -> dict[str, str]:
        """Key -> the call that writes it, or has written it before."""
        return {key: call.name for call in (*self.exchange.made, *self.calls) for key in call.outputs}


def _trains(call: ModelFunctionCall, context: CallContext) -> bool:
    """Whether a call uses the optimizer's state as well."""
    return call.kind == "train_step" and context.training


def to_compute(calls: Sequence[ModelFunctionCall], batch: NamedArray) -> list[ModelFunctionCall]:
    """The calls without those whose outputs a batch has already."""
    return [call for call in calls if call.kind == "train_step" or not all(key in batch for key in call.outputs)]
