"""`Execution`: executes calls on a batch, those of them that are this rank's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from reallm.algorithms.context import CallContext
from reallm.algorithms.exchange import Exchange
from reallm.algorithms.finite_outputs import check_finite
from reallm.algorithms.interface import optimizer_steps
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.algorithms.weight_updates import due_updates, update_weights
from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray, merge, split
from reallm.errors import NonFiniteError, PluginError, kind_of
from reallm.parallel.object_collectives import all_gather_json
from reallm.specs import ModelFunctionCall
from reallm.training.nonfinite import sample_names

WEIGHTS_VERSIONS = "weights_versions"
"""Metadata of a batch with generated tokens: role -> the version of the weights that generated them."""

OnCall = Callable[[ModelFunctionCall, NamedArray, CallContext], None]
"""Function of a call, the batch, and the context of the call."""


class Execution:
    """Executes calls on batches, those of them that are this rank's.

    A rank skips the calls of others, and waits for them only where it needs what they write. Before a call its copy of
    the model gets the newest weights; after it, the copy is offloaded if the placement says so.

    Numbers that are not finite end a call on all of its ranks alike. If other ranks have no part in it, the call and
    those that read what it writes are left out, and the error is kept in `errors`, for all ranks to raise together.

    Args:
        roles: the loaded roles, by name.
        interfaces: an instance of the interface of each role, by name.
        placement: where calls are computed.
        rank: this rank.
    """

    def __init__(
        self, roles: Mapping[str, Role], interfaces: Mapping[str, Any], placement: Placement, rank: int
    ) -> None:
        self._roles, self._interfaces, self._placement, self._rank = roles, interfaces, placement, rank
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
        exchange = exchange or self.begin(calls, batch)
        writers = {key: call.name for call in (*exchange.made, *calls) for key in call.outputs}
        failed = {call.name: self.errors[call.name] for call in exchange.made if call.name in self.errors}
        for call in calls:
            model = None if call.kind == "reward" else self._roles[call.role].replicas.at(self._layout(call))
            is_here = self._rank in self._placement.ranks(call.name)
            if is_here:
                received, errors = exchange.receive(call.name)
                failed |= errors
                for parts in received.values():
                    batch = _merged(batch, parts)
                try:
                    for key in call.inputs:
                        if writers.get(key) in failed:
                            raise failed[writers[key]]
                    batch = self._after(call, model, batch, self._context_of(call, context), train, computed)
                    exchange.send(call.name, batch)
                except NonFiniteError as raised:
                    if self._placement.covers_job:
                        raise
                    failed[call.name] = raised
                    exchange.send(call.name, raised)
            if call.kind == "train_step" and context.training:
                self._weights_changed(call, context, call.name in failed)
                context = context.after_updates(call.role, optimizer_steps(self._interfaces[call.role]))
            if is_here and call.name in self._placement.offloaded:
                trained = call.kind == "train_step" and context.training
                self._roles[call.role].replicas.offload(self._layout(call), trained=trained)
        exchange.finish()
        self.errors = failed | self.errors
        return batch

    def begin(
        self, calls: Sequence[ModelFunctionCall], batch: NamedArray, made: Sequence[ModelFunctionCall] = ()
    ) -> Exchange:
        """The messages of calls that are executed later; what others need of those made before is sent now.

        Args:
            calls: the calls; see `to_compute`.
            batch: the samples, with what this rank's calls of those made before have written.
            made: the calls that were executed before.
        """
        exchange = Exchange(self._placement, calls, self._rank, made)
        for call in made:
            if self._rank in self._placement.ranks(call.name):
                exchange.send(call.name, self.errors.get(call.name, batch))
        return exchange

    def _layout(self, call: ModelFunctionCall) -> Any:
        return self._placement.layouts[call.name]

    def _context_of(self, call: ModelFunctionCall, context: CallContext) -> CallContext:
        """The context of a call, with the limit on tokens of the role that is called."""
        role = self._roles.get(call.role)
        return context.for_call(call.name, None if role is None else role.args.max_tokens_per_microbatch)

    def _after(
        self,
        call: ModelFunctionCall,
        model: Any,
        batch: NamedArray,
        context: CallContext,
        train: OnCall,
        computed: OnCall,
    ) -> NamedArray:
        """Make a call; returns the batch, with the outputs of one that does not train."""
        self._wait_for_offloads()
        inputs = split(batch, [call.inputs])[0]  # other ranks may have no other keys
        if call.kind == "train_step":
            train(call, inputs, context)
            return batch
        outputs = self._outputs(call, model, inputs, context)
        if call.kind == "generate":
            outputs = outputs.with_metadata(
                **{WEIGHTS_VERSIONS: {call.role: context.weights_versions.get(call.role, 0)}}
            )
        batch = _merged(batch, [outputs])
        computed(call, batch, context)
        return batch

    def _outputs(self, call: ModelFunctionCall, model: Any, batch: NamedArray, context: CallContext) -> NamedArray:
        """What the interface computes in a call that does not train."""
        interface = self._interfaces[call.role]
        if call.kind == "reward":
            outputs = interface.reward(batch, context)
        else:
            outputs = getattr(interface, call.kind)(model, batch, context)
        _check_outputs(call, outputs, batch)
        assert isinstance(outputs, NamedArray)
        if context.training:
            check_finite(call, outputs, self._placement.graph.trained_keys, sample_names(batch))
        return outputs

    def _weights_changed(self, call: ModelFunctionCall, context: CallContext, failed: bool) -> None:
        """Have the weights of other roles follow, and note which copies are behind.

        They stay as they are if the call failed, which other ranks are told here.
        """
        n_steps = optimizer_steps(self._interfaces[call.role])
        before, after = (context.step - 1) * n_steps, context.step * n_steps
        if due_updates(call, before, after) and not self._placement.covers_job and _on_any_rank(failed):
            return
        for role in (call.role, *update_weights(call, self._roles, before, after)):
            self._roles[role].replicas.weights_changed()

    def _wait_for_offloads(self) -> None:
        for role in self._roles.values():
            role.replicas.wait_for_offload()


def to_compute(calls: Sequence[ModelFunctionCall], batch: NamedArray) -> list[ModelFunctionCall]:
    """The calls without those whose outputs a batch has already."""
    return [call for call in calls if call.kind == "train_step" or not all(key in batch for key in call.outputs)]


def _merged(batch: NamedArray, parts: Sequence[NamedArray]) -> NamedArray:
    """The batch with outputs of calls; with generated tokens, the version of the weights is noted."""
    versions: dict[str, int] = {}
    for part in (batch, *parts):
        versions |= part.metadata.get(WEIGHTS_VERSIONS, {})
    plain = [part.with_metadata(**{WEIGHTS_VERSIONS: None}) for part in (batch, *parts)]
    return merge(plain).with_metadata(**{WEIGHTS_VERSIONS: versions or None})


def _on_any_rank(condition: bool) -> bool:
    """Whether a condition holds on any rank of the job."""
    assert dist.group.WORLD is not None
    return any(all_gather_json(condition, dist.group.WORLD).values())


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
