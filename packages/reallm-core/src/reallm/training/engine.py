"""`TrainEngine`: optimizer steps on packed batches, split by a token budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.arguments import check_count, check_instance
from reallm.config.lr_schedule import lr_at
from reallm.config.optimizer import OptimizerConfig, check_unsharded
from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.engine.diagnosis import model_fault
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Shape
from reallm.model.transformer import Transformer
from reallm.offload.tensors import Offload
from reallm.parallel.fsdp import is_fsdp, reshard
from reallm.parallel.grad_reduce import GradientReducer
from reallm.seeding import derive_seed
from reallm.training.correction_bias import CorrectionBiases
from reallm.training.eval_engine import EvalEngine, check_model
from reallm.training.forward_backward import AUX_LOSS, ReducedLosses
from reallm.training.microbatch import split_micro_batches
from reallm.training.nonfinite import nonfinite_error, nonfinite_model_error, sample_names
from reallm.training.objective import Objective, check_objective, prepare, trains_with_dropout
from reallm.training.optimizer import Optimizer


@dataclass(frozen=True)
class EngineState:
    """The state that training changes. Its tensors are the engine's own, not copies, and valid until the next step."""

    step: int
    skipped_steps: int
    moments: Mapping[str, Tensor]
    """The optimizer's state, as `<parameter>/exp_avg` and so on."""
    weights: Mapping[str, Tensor]
    """The tensors that the optimizer updates, by parameter name: the parameters, or their float32 masters."""


class TrainEngine(EvalEngine):
    """Trains a model on batches of any size within a memory budget, and evaluates it.

    For a model with a mesh, each rank of the layout has an engine. All ranks make the same calls with the same whole
    batches, compute some of the micro-batches each, and get the same results as a single process, up to the order of
    sums.

    Only the model's parameters and the contents of `state` change from step to step.

    Args:
        model: the model, trained in place on the device of its parameters.
        optimizer_config: the optimizer, its schedule and clipping.
        total_steps: the steps over which the learning rate follows its schedule.
        max_tokens_per_microbatch: limit on the tokens of a micro-batch; a longer sample is a micro-batch of its own.
            Results do not depend on it, except for the masks of dropout.
        seed: seed of dropout, which has a random stream for each step, data-parallel rank and pipeline stage.
        moe_aux_loss_coef: coefficient of the load-balancing loss of a model with experts, 0 for none; None takes
            `config.moe.aux_loss_coef`.
        moe_bias_update_rate: amount by which a step moves the correction biases of routers towards an even load of the
            experts; 0 leaves them as they are. See `CorrectionBiases`.
        exact: whether the log-probability of a token is that of `generate(exact=True)`, bit for bit, while the weights
            are the same. Dropout and other noise of the model are refused, unless the objective has `dropout = False`.

    Raises:
        ConfigError: an argument has the wrong type; the parameters are float16; the optimizer needs whole matrices,
            which the model's layout splits; `moe_aux_loss_coef` for a model without experts; `exact` is not possible.
    """

    def __init__(
        self,
        model: ReaLModel,
        optimizer_config: OptimizerConfig,
        total_steps: int,
        max_tokens_per_microbatch: int,
        *,
        seed: int = 0,
        moe_aux_loss_coef: float | None = None,
        moe_bias_update_rate: float = 0.0,
        exact: bool = False,
    ) -> None:
        check_model(model)
        check_instance("optimizer_config", optimizer_config, OptimizerConfig, "write OptimizerConfig(lr=...)")
        total_steps, seed = check_count("total_steps", total_steps), check_count("seed", seed, at_least=0)
        if model.mesh is not None:
            check_unsharded(optimizer_config, model.mesh.layout)
        align_parameters(model.network)
        aux_loss_coef = _aux_loss_coef(model.config, moe_aux_loss_coef)
        balances = moe_bias_update_rate != 0
        super().__init__(
            model, max_tokens_per_microbatch, aux_loss_coef=aux_loss_coef, counts_choices=balances, exact=exact
        )
        self._correction_biases = (
            CorrectionBiases(model.network, moe_bias_update_rate, self._mesh) if balances else None
        )
        self.step = 0
        """Optimizer steps done, those that were skipped included."""
        self.skipped_steps = 0
        """Steps that changed nothing, because the loss or the gradients were not finite."""
        self.before_optimizer_step: Callable[[], None] | None = None
        """Called before a step changes the contents of `state`, or they are offloaded, so that readers can finish."""
        self._optimizer_config = optimizer_config
        self._optimizer = Optimizer(model.network, optimizer_config)
        self._offload: Offload | None = None
        self._reducer = None if self._mesh is None else GradientReducer.of(model.network, self._mesh)
        self._total_steps = total_steps
        self._seed = seed

    @property
    def weights_version(self) -> int:
        """Number of updates that the parameters have had, in a resumed run also before; skipped steps do not count."""
        return self.step - self.skipped_steps

    def async_offload(self) -> None:
        """Start moving the model and the optimizer state to host memory; see `ReaLModel.async_offload`.

        The next step brings them back automatically: the model layer by layer, the optimizer state while losses and
        gradients are computed. An evaluation brings back the model.

        Raises:
            DataError: the host has no room; says where.
        """
        self.reload()
        self.model.async_offload()
        if tensors := self._optimizer.state_tensors():
            self._offload = Offload([[], tensors], tensors[0].device)

    def wait_for_offload(self) -> None:
        """Wait until model and optimizer state have left the device's memory; returns at once without an offload."""
        if self.before_optimizer_step is not None:
            self.before_optimizer_step()
        self.model.wait_for_offload()
        if self._offload is not None:
            self._offload.wait()

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of model and optimizer state that are in host memory, or on their way there or back; 0 if none are."""
        return self.model.offloaded_bytes + (0 if self._offload is None else self._offload.offloaded_bytes)

    def start_reload(self) -> None:
        """Begin to bring back what is offloaded, all of it, in the background; the next step waits for the rest."""
        self.model.start_reload()
        if self._offload is not None:
            self._offload.start_reload()

    def reload(self) -> None:
        """Bring back what is offloaded, for good."""
        self.model.reload()
        if self._offload is not None:
            self._offload.reload()
            self._offload = None

    def train_batch(self, batch: NamedArray, objective: Objective) -> dict[str, float]:
        """Take one optimizer step on `batch`; the loss is the loss sum of the whole batch divided by its total weight.

        A loss of several terms is the sum of such quotients; see `Objective`, also for what an objective can do with
        the batch before it is cut.

        With experts, the load-balancing loss of each micro-batch is added, in proportion to its weight (the mean of its
        shares of all terms' weights). It alone depends on how the batch is split into micro-batches, as in every
        framework: it is a product of two means over the tokens of a micro-batch, and the mean of such products is not
        the product of the means. To compute it over the whole batch, the activations of all micro-batches would have to
        be kept at once.

        Returns:
            The objective's metrics before the step, and `lr`, `grad_norm`, `tokens`; with `on_nonfinite="skip"` also
            `skipped_steps`, the number of skipped steps so far, and with a load-balancing loss `aux_loss`, its weighted
            mean over the micro-batches before multiplication by its coefficient. A batch without any weight (no token
            carries loss) changes no parameter.

        Raises:
            ConfigError: the engine is exact, and the model adds noise in training.
            PluginError: the terms of the objective's loss and of its weights differ.
            NonFiniteError: with `on_nonfinite="stop"`, the loss or the gradients are not finite; names the samples, or
                with a mesh all samples of their micro-batches. With either setting, the loss is not finite whatever the
                samples; names what is wrong with the model. The parameters, the optimizer and `step` are unchanged.
            PeerError: an earlier error has left the model unusable.
        """
        check_objective(objective)
        if self._exact_mode is not None and trains_with_dropout(objective):
            _refuse_noise(self.model.config)
        batch = prepare(objective, batch)
        local_batch = split_micro_batches(batch, objective, self.max_tokens_per_microbatch, self._mesh)
        lr = lr_at(self.step + 1, self._total_steps, self._optimizer_config)
        self.model.train(dropout=trains_with_dropout(objective))
        if self._offload is not None:
            self._offload.before_use(0)  # an empty group: the optimizer state is the next one, and begins to come back
        try:
            with self._dropout_seed(), self._exact_mode or nullcontext():
                losses = self._forward_backward.train(local_batch, objective, self._optimizer.accumulate_gradients)
            grad_norm = self._optimizer_step(lr, losses, batch, objective) if local_batch.has_loss else 0.0
        except BaseException:
            self._optimizer.zero_grad()  # otherwise partial gradients would be added to those of the next step
            raise
        self.step += 1
        totals = losses.totals
        metrics = {**objective.metrics(totals), "lr": lr, "grad_norm": grad_norm, "tokens": totals.n_tokens}
        if AUX_LOSS in totals.stats:
            metrics[AUX_LOSS] = totals.stats[AUX_LOSS] / local_batch.combined(totals.loss_weights)
        if self._optimizer_config.on_nonfinite == "skip":
            metrics["skipped_steps"] = self.skipped_steps
        return metrics

    def state(self, *, weights: bool = True) -> EngineState:
        """The state that a resumed engine needs; `weights=False` if unrounded parameters are saved elsewhere."""
        self.reload()
        stepped = self._optimizer.weights() if weights else {}
        if weights and self._correction_biases is not None:
            stepped |= self._correction_biases.weights()
        return EngineState(self.step, self.skipped_steps, self._optimizer.moments(), stepped)

    def load_state(self, state: EngineState) -> None:
        """Restore `state`, whose tensors are copied; if it has no weights, the model must already hold them.

        Raises:
            KeyError: `state` has a tensor of a parameter that this engine does not train.
            ConfigError: `state` is that of another optimizer.
        """
        check_instance("state", state, EngineState, "take that of engine.state()")
        self.reload()
        reshard(self.model.network)  # unsharded parameters would keep the old values
        weights = dict(state.weights)
        if self._correction_biases is not None:
            own = {name: weights.pop(name) for name in self._correction_biases.weights() if name in weights}
            self._correction_biases.load(own)
        self._optimizer.load(state.moments, weights)
        self.step, self.skipped_steps = state.step, state.skipped_steps

    def state_shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors of `state().moments` for a whole model, by name."""
        return self._optimizer.state_shapes(parameter_shapes(self.model.config))

    @property
    def has_masters(self) -> bool:
        """Whether the model's parameters are rounded copies of float32 masters, which only `state` exposes."""
        return self._optimizer.has_masters

    def _optimizer_step(self, lr: float, losses: ReducedLosses, batch: NamedArray, objective: Objective) -> float:
        """Step with the accumulated gradients, unless something is not finite; returns the norm of the gradients."""
        norm = self._reduced_grad_norm()
        grad_norm, loss_sum = float(norm), losses.totals.loss_sum
        if math.isfinite(loss_sum) and math.isfinite(grad_norm):
            if self.before_optimizer_step is not None:
                self.before_optimizer_step()
            self.reload()
            self._optimizer.step(lr, norm)
            if self._correction_biases is not None:
                self._correction_biases.step(losses.choices)
            return grad_norm
        fault = None if math.isfinite(loss_sum) else model_fault(self.model.network, self._mesh)
        if fault is not None:  # no other batch would do better, so there is nothing to skip
            raise nonfinite_model_error(self.step + 1, loss_sum, fault)
        if self._optimizer_config.on_nonfinite == "stop":
            nonfinite_samples = losses.nonfinite_samples
            if self._mesh is None and not math.isfinite(loss_sum):
                nonfinite_samples = self._nonfinite_samples(batch, objective)
            raise nonfinite_error(self.step + 1, loss_sum, grad_norm, nonfinite_samples, sample_names(batch))
        self._optimizer.zero_grad()
        self.skipped_steps += 1
        return grad_norm

    def _reduced_grad_norm(self) -> Tensor:
        """Reduce the accumulated gradients over all ranks; returns their norm."""
        if self._reducer is None:
            return self._optimizer.grad_norm()
        gradients = self._optimizer.gradients()
        self._reducer.reduce(gradients)
        return self._reducer.norm(gradients)

    def _nonfinite_samples(self, batch: NamedArray, objective: Objective) -> list[str]:
        """Names of the samples whose loss is not finite when each is computed separately."""
        with self._evaluating():
            return [
                name
                for row, name in enumerate(sample_names(batch))
                if not math.isfinite(self._evaluate_prepared(select(batch, [row]), objective).loss_sum)
            ]

    @contextmanager
    def _dropout_seed(self) -> Iterator[None]:
        """Seed the global generator, from which dropout draws, for this step, and restore it afterwards.

        Tensor-parallel ranks draw the same numbers; data-parallel ranks and pipeline stages draw different ones.
        """
        device = self.model.device
        coordinate = () if self._mesh is None else (self._mesh.coordinate.dp, self._mesh.coordinate.pp)
        streams = coordinate if any(coordinate) else ()  # the first rank draws what one process draws
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self._seed, "dropout", self.step, *streams))
            yield


def _aux_loss_coef(config: ReaLModelConfig, requested: float | None) -> float:
    if config.moe is None:
        if requested is not None:
            raise ConfigError(f"model.moe_aux_loss_coef={requested} is for models with experts; leave it out")
        return 0.0
    if requested is None:
        return config.moe.aux_loss_coef
    if not requested >= 0:
        raise ConfigError(f"model.moe_aux_loss_coef={requested} must be at least 0")
    return requested


def _refuse_noise(config: ReaLModelConfig) -> None:
    """Raise ConfigError if training adds noise, with which log-probabilities cannot be those of generation."""
    noise = {name: getattr(config, name) for name in ("embedding_dropout", "attn_dropout", "residual_dropout")}
    noise["moe.jitter"] = 0.0 if config.moe is None else config.moe.jitter
    for name, amount in noise.items():
        if amount:
            raise ConfigError(
                f"exact=True does not go together with {name}={amount}; set it to 0, or train with an objective that "
                "has dropout = False"
            )


def align_parameters(network: Transformer) -> None:
    """Copy parameters that a mapped file holds at addresses that are not multiples of 64 bytes.

    Sums over the same numbers at another alignment can differ in the last bit, so that a resumed run would differ from
    an uninterrupted one. The first step changes all parameters, so in the end the copy costs no memory. What adapters
    leave unchanged stays mapped, each time at the same place of the file.
    """
    if is_fsdp(network):
        return  # FSDP has allocated its parameters
    for parameter in network.parameters():
        if network.config.lora is not None and not parameter.requires_grad:
            continue
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:  # torch allocates at multiples of 64 bytes
            parameter.data = parameter.data.clone()
