"""`Session`: the calls of an algorithm's graph, made by hand, as a run makes them, with models that can be reset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.graph import Graph
from reallm.algorithms.interface import optimizer_steps
from reallm.config.training import TrainingConfig, max_tokens_per_microbatch, model_args, role_optimizer
from reallm.data.namedarray import NamedArray, merge, split
from reallm.engine.real_model import ReaLModel
from reallm.errors import kind_of
from reallm.specs import Algorithm, ModelFunctionCall
from reallm.training.engine import TrainEngine
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.source import reference_location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOTAL_STEPS = 100
Gradients = Mapping[str, Tensor]


def inputs_of(call: ModelFunctionCall, batch: NamedArray) -> NamedArray:
    """What a run gives to a call: the keys that it reads, and no others."""
    return split(batch, [[key for key in call.inputs if key in batch]])[0]


@dataclass(frozen=True)
class TrainResult:
    """What a train call has done: the gradients of each optimizer step, and its metrics."""

    gradients: list[Gradients]
    metrics: Mapping[str, float]


class Session:
    """An algorithm with a model for each role. Each call begins with the weights of the checkpoints.

    Args:
        algorithm: the algorithm.
        config: its configuration, with the paths of checkpoints.
        graph: its graph for the configuration.
        tokenizer: the tokenizer.
    """

    def __init__(
        self, algorithm: Algorithm, config: TrainingConfig, graph: Graph, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.algorithm, self.config, self.graph, self.tokenizer = algorithm, config, graph, tokenizer
        self._models: dict[str, ReaLModel] = {}
        for role in graph.roles:
            args = model_args(config, role)
            self._models[role] = ReaLModel.from_pretrained(
                args.path, device="cpu", is_critic=args.is_critic, seed=config.seed
            )
        self._weights = {
            role: {name: value.clone() for name, value in model.network.state_dict().items()}
            for role, model in self._models.items()
        }

    def interfaces(self) -> dict[str, Any]:
        """A new interface for each role."""
        return {role: self.algorithm.interface_class(role)(self.config) for role in self.graph.all_roles}

    def context(self, step: int = 1, max_tokens: int | None = None, *, training: bool = True) -> CallContext:
        """The context of a step."""
        limit = max_tokens or self.config.max_tokens_per_microbatch
        versions = dict.fromkeys(self.graph.trained_roles, step - 1)
        return CallContext(self.tokenizer, self.config.seed, step, TOTAL_STEPS, limit, training, versions)

    def with_outputs(
        self,
        batch: NamedArray,
        *,
        kinds: tuple[str, ...] = ("generate", "inference", "reward"),
        max_tokens: int | None = None,
        training: bool = True,
    ) -> NamedArray:
        """The batch with the outputs of the calls of these kinds, but of those that are there already.

        Raises:
            CheckFailed: an interface does not return the keys of its call for all samples.
        """
        self._reset()
        interfaces, context = self.interfaces(), self.context(max_tokens=max_tokens, training=training)
        for call in self.graph.calls:
            if call.kind not in kinds or all(key in batch for key in call.outputs):
                continue
            if not all(key in batch for key in call.inputs):  # written by a call of another kind
                continue
            batch = merge([batch, self._outputs(call, interfaces[call.role], inputs_of(call, batch), context)])
        return batch

    def _outputs(self, call: ModelFunctionCall, interface: Any, batch: NamedArray, context: CallContext) -> NamedArray:
        context = context.for_call(call.name)
        if call.kind == "reward":
            outputs = interface.reward(batch, context)
        else:
            outputs = getattr(interface, call.kind)(self._models[call.role], batch, context)
        where, look_at = f"call '{call.name}'", self.at(call.role, call.kind)
        expected = f"a NamedArray with {', '.join(call.outputs)}, as the graph says"
        if not isinstance(outputs, NamedArray):
            raise CheckFailed(expected, kind_of(outputs), where, look_at)
        if set(outputs) != set(call.outputs):
            raise CheckFailed(expected, ", ".join(outputs) or "one without fields", where, look_at)
        seqlens, n = outputs.metadata.get("seqlens", {}), len(batch.metadata["seqlens"][next(iter(batch))])
        for key in call.outputs:
            if key not in seqlens:
                remedy = f"add .with_metadata(seqlens={{'{key}': [[n], ...]}}), an entry for each sample"
                raise CheckFailed(f"seqlens of '{key}', by which a batch is cut: {remedy}", "none", where, look_at)
            if len(seqlens[key]) != n:
                raise CheckFailed(f"'{key}' for each of {n} samples", f"for {len(seqlens[key])}", where, look_at)
            found = sum(sum(sample) for sample in seqlens[key])
            if len(outputs[key]) != found:
                raise CheckFailed(
                    f"seqlens of '{key}' that sum to its {len(outputs[key])} elements", f"{found}", where, look_at
                )
        return outputs

    def train(self, batch: NamedArray, max_tokens: int | None = None, *, step: int = 1) -> dict[str, TrainResult]:
        """Make all train calls of a step on a batch with the outputs of the others; by the name of the call."""
        self._reset()
        interfaces, context = self.interfaces(), self.context(step, max_tokens)
        return {
            call.name: self._train(call, interfaces[call.role], inputs_of(call, batch), context)
            for call in self.graph.train_calls
        }

    def _train(self, call: ModelFunctionCall, interface: Any, batch: NamedArray, context: CallContext) -> TrainResult:
        model, found = self._models[call.role], list[Gradients]()
        limit = context.max_tokens_per_microbatch
        if limit == self.config.max_tokens_per_microbatch:
            limit = max_tokens_per_microbatch(self.config, call.role)
        total_steps = TOTAL_STEPS * optimizer_steps(interface)
        engine = TrainEngine(model, role_optimizer(self.config, call.role), total_steps, limit, seed=self.config.seed)
        engine.before_optimizer_step = lambda: found.append(
            {name: each.grad.clone() for name, each in model.network.named_parameters() if each.grad is not None}
        )
        where, look_at = f"call '{call.name}'", self.at(call.role, "train_step")
        metrics = interface.train_step(
            engine, batch, replace(context.for_call(call.name), max_tokens_per_microbatch=limit)
        )
        if not isinstance(metrics, Mapping):
            raise CheckFailed("metrics by name, such as those of engine.train_batch", kind_of(metrics), where, look_at)
        if "tokens" not in metrics:
            expected = "the metrics of engine.train_batch, among them 'tokens', from which the rate is computed"
            raise CheckFailed(expected, ", ".join(metrics) or "none", where, look_at)
        if engine.step != optimizer_steps(interface):
            raise CheckFailed(
                f"optimizer_steps={engine.step}, the steps that train_step makes, over which the learning rate decays",
                f"optimizer_steps={optimizer_steps(interface)}",
                where,
                look_at,
            )
        return TrainResult(found, metrics)

    def at(self, role: str, method: str) -> str:
        """The location of a method of a role's interface."""
        return reference_location(self.algorithm.interfaces[role], method)

    def _reset(self) -> None:
        for role, weights in self._weights.items():
            self._models[role].network.load_state_dict(weights)
            self._models[role].eval()
