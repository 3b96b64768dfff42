"""`TrainEngine`: optimizer steps on packed batches, cut by token budget, and exact evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reallm.data.batching import n_samples, select
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches
from reallm.engine.objective import Objective, Totals
from reallm.engine.optimizer import Optimizer
from reallm.engine.optimizer_config import OptimizerConfig, lr_at
from reallm.errors import ConfigError, NonFiniteError
from reallm.model.config import ReaLModelConfig
from reallm.model.moe import load_balancing_loss
from reallm.model.routing import RoutingNotes
from reallm.model.transformer import Transformer
from reallm.seeding import derive_seed

Part = tuple[NamedArray, float]
"""A micro-batch and its weight."""
AUX_LOSS = "aux_loss"
"""The name of the load-balancing loss among metrics."""


@dataclass(frozen=True)
class EngineState:
    """All that training changes. The tensors are those of the engine, not copies, and hold until the next update."""

    step: int
    skipped_steps: int
    moments: Mapping[str, Tensor]
    """What the optimizer remembers, as `<parameter>/exp_avg` and so on."""
    weights: Mapping[str, Tensor]
    """What the optimizer steps, by parameter name: the parameters, or their float32 masters."""


class TrainEngine:
    """Trains a model on batches of any size within a memory budget.

    All that changes from step to step is the model's parameters and what `state` gives.

    Args:
        model: trained in place, on the device its parameters lie on.
        optimizer_config: AdamW, schedule and clipping.
        total_steps: the steps over which the learning rate follows its schedule.
        max_tokens_per_microbatch: tokens that go through the model at once; one longer sample goes alone. Results do
            not depend on it, except for the masks of dropout.
        seed: of dropout, which has a random stream of its own for each step.
        moe_aux_loss_coef: what the load-balancing loss of a model with experts is multiplied by, 0 for none; None takes
            `config.moe.aux_loss_coef`.

    Raises:
        ConfigError: the parameters are float16; `moe_aux_loss_coef` for a model without experts.
    """

    def __init__(
        self,
        model: Transformer,
        optimizer_config: OptimizerConfig,
        total_steps: int,
        max_tokens_per_microbatch: int,
        *,
        seed: int = 0,
        moe_aux_loss_coef: float | None = None,
    ) -> None:
        _own_memory(model)
        self.model = model
        self.step = 0
        """Optimizer steps done, those that were skipped included."""
        self.skipped_steps = 0
        """Steps that changed nothing, because the loss or the gradients were not finite."""
        self.before_update: Callable[[], None] | None = None
        """Called before the parameters change in a step: whoever still reads them can have it wait."""
        self._optimizer_config = optimizer_config
        self._optimizer = Optimizer(model, optimizer_config)
        self._aux_loss_coef = _aux_loss_coef(model.config, moe_aux_loss_coef)
        self._total_steps = total_steps
        self._max_tokens = max_tokens_per_microbatch
        self._seed = seed

    def train_batch(self, batch: NamedArray, objective: Objective) -> dict[str, float]:
        """One optimizer step on `batch`; its loss is the loss sum of the whole batch over its total weight.

        Of a model with experts, the load-balancing loss of each micro-batch is added, in proportion to the
        micro-batch's weight. It is the one thing that depends on how the batch is cut, as in every framework: it is
        a product of two means over the tokens that go through the model together, and the mean of such products is
        not the product of the means. To have it over the whole batch, all micro-batches would have to be kept at once.

        Returns:
            The objective's metrics before the step, and `lr`, `grad_norm`, `tokens`; with `on_nonfinite="skip"` also
            `skipped_steps`, how many there have been, and with a load-balancing loss `aux_loss`, its mean over the
            micro-batches by weight, before it is multiplied by its coefficient. A batch without any weight (no token
            carries loss) changes no parameter.

        Raises:
            NonFiniteError: with `on_nonfinite="stop"`, the loss or the gradients are not finite; names the samples.
                The parameters, the optimizer and `step` are as they were.
        """
        parts = self._cut(batch, objective)
        weight = sum(part_weight for _, part_weight in parts)
        lr = lr_at(self.step + 1, self._total_steps, self._optimizer_config)
        self.model.train()
        try:
            with self._random_stream():
                totals = _sum(self._forward(parts, objective, divide_by=weight))
            grad_norm = self._update(lr, totals, parts, objective) if weight else 0.0
        except BaseException:
            self._optimizer.forget_gradients()  # or what was collected so far would join the next step
            raise
        self.step += 1
        metrics = {**objective.metrics(totals), "lr": lr, "grad_norm": grad_norm, "tokens": totals.tokens}
        if AUX_LOSS in totals.stats:
            metrics[AUX_LOSS] = totals.stats[AUX_LOSS] / totals.weight
        if self._optimizer_config.on_nonfinite == "skip":
            metrics["skipped_steps"] = self.skipped_steps
        return metrics

    @torch.no_grad()
    def evaluate(self, batches: Iterable[NamedArray], objective: Objective) -> Totals:
        """Sums over all batches, without dropout and without gradients."""
        with self._evaluating():
            return sum((_sum(self._forward(self._cut(batch, objective), objective)) for batch in batches), Totals())

    def state(self, *, weights: bool = True) -> EngineState:
        """What a resumed engine needs; without `weights` where the model's own parameters are kept elsewhere, whole."""
        return EngineState(
            self.step, self.skipped_steps, self._optimizer.moments(), self._optimizer.weights() if weights else {}
        )

    def load_state(self, state: EngineState) -> None:
        """Go on where `state` was taken. Its tensors are copied; without weights, the model must hold them already.

        Raises:
            KeyError: it has a tensor of a parameter that is not trained here.
        """
        self._optimizer.load(state.moments, state.weights)
        self.step, self.skipped_steps = state.step, state.skipped_steps

    @property
    def has_masters(self) -> bool:
        """Whether the model's parameters are rounded copies of float32 masters, which only `state` gives."""
        return self._optimizer.has_masters

    def _cut(self, batch: NamedArray, objective: Objective) -> list[Part]:
        """Micro-batches within the budget, each with its weight."""
        parts = [select(batch, rows) for rows in micro_batches(objective.sizes(batch), self._max_tokens)]
        return [(part, objective.weight(part)) for part in parts]

    def _forward(
        self, parts: Iterable[Part], objective: Objective, divide_by: float | None = None
    ) -> Iterator[tuple[float, int, dict[str, Tensor]]]:
        """Weight, tokens and sums of each part; with `divide_by`, also the gradients of its share of the loss."""
        device = next(self.model.parameters()).device
        for part, weight in parts:
            if not weight:
                continue
            with self._noted_routing() as notes:
                output = objective.loss(self.model, part.to(device))
            sums = {"loss_sum": output.loss_sum.detach(), **output.stats}
            if divide_by is not None:
                loss, routing = output.loss_sum / divide_by, notes.close()
                if routing:
                    aux_loss = load_balancing_loss(routing)
                    loss = loss + self._aux_loss_coef * (weight / divide_by) * aux_loss
                    sums[AUX_LOSS] = weight * aux_loss.detach()
                loss.backward()
                self._optimizer.collect_gradients()
            yield weight, sum(objective.sizes(part)), sums

    @contextmanager
    def _noted_routing(self) -> Iterator[RoutingNotes]:
        """What routers do in the block, in training with a load-balancing loss; otherwise nothing is noted."""
        notes = RoutingNotes()
        self.model.routing = notes if self._aux_loss_coef else None
        try:
            yield notes
        finally:
            self.model.routing = None

    def _update(self, lr: float, totals: Totals, parts: Sequence[Part], objective: Objective) -> float:
        """Step with the collected gradients, or not if something is not finite; the norm of the gradients."""
        norm = self._optimizer.grad_norm()
        grad_norm = float(norm)
        if math.isfinite(totals.loss_sum) and math.isfinite(grad_norm):
            if self.before_update is not None:
                self.before_update()
            self._optimizer.step(lr, norm)
            return grad_norm
        if self._optimizer_config.on_nonfinite == "stop":
            raise self._nonfinite(totals, grad_norm, parts, objective)
        self._optimizer.forget_gradients()
        self.skipped_steps += 1
        return grad_norm

    def _nonfinite(
        self, totals: Totals, grad_norm: float, parts: Sequence[Part], objective: Objective
    ) -> NonFiniteError:
        names = [name for part, _ in parts for name in _names(part)]
        if math.isfinite(totals.loss_sum):
            what = f"the gradients are not finite (norm {grad_norm}); samples of the step: {_some(names)}"
        else:
            with torch.no_grad(), self._evaluating():
                culprits = [name for part, _ in parts for name in self._bad_samples(part, objective)]
            what = (
                f"the loss of {_some(culprits)} is not finite ({totals.loss_sum})"
                if culprits
                else f"the loss is not finite ({totals.loss_sum}); samples of the step: {_some(names)}"
            )
        return NonFiniteError(
            f"step {self.step + 1}: {what}. The parameters are as before the step: look at these samples, lower "
            "optimizer.lr or give it a longer warm-up, train with model.dtype=float32, or set "
            "optimizer.on_nonfinite=skip"
        )

    def _bad_samples(self, part: NamedArray, objective: Objective) -> list[str]:
        """Names of the samples whose own loss is not finite."""
        alone = [(select(part, [row]), name) for row, name in enumerate(_names(part))]
        return [
            name
            for sample, name in alone
            if not math.isfinite(_sum(self._forward([(sample, objective.weight(sample))], objective)).loss_sum)
        ]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @contextmanager
    def _random_stream(self) -> Iterator[None]:
        """Dropout draws from the global generator: give it the seed of this step, and put it back afterwards."""
        device = next(self.model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self._seed, "dropout", self.step))
            yield


def _aux_loss_coef(config: ReaLModelConfig, wanted: float | None) -> float:
    if config.moe is None:
        if wanted is not None:
            raise ConfigError(f"model.moe_aux_loss_coef={wanted} is for models with experts; leave it out")
        return 0.0
    if wanted is None:
        return config.moe.aux_loss_coef
    if not wanted >= 0:
        raise ConfigError(f"model.moe_aux_loss_coef={wanted} must be at least 0")
    return wanted


def _own_memory(model: nn.Module) -> None:
    """Copy parameters that lie in a mapped file at odd addresses.

    The same numbers otherwise aligned can give sums that differ in the last bit, and a resumed run would not be the
    uninterrupted one. All of them change in the first step, so that the copy costs no memory in the end.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:  # torch allocates at multiples of 64 bytes
            parameter.data = parameter.data.clone()


def _names(batch: NamedArray) -> Sequence[str]:
    ids: Sequence[str] | None = batch.metadata.get("ids")
    return ids if ids is not None else [f"sample {row} of a micro-batch" for row in range(n_samples(batch))]


def _some(names: Sequence[str], n: int = 8) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:n])
    return shown if len(names) <= n else f"{shown} and {len(names) - n} more"


def _sum(results: Iterable[tuple[float, int, dict[str, Tensor]]]) -> Totals:
    """Add up in float64 on the device, and wait for the device once."""
    weight, tokens, sums = 0.0, 0, dict[str, Tensor]()
    for part_weight, part_tokens, part_sums in results:
        weight += part_weight
        tokens += part_tokens
        for name, value in part_sums.items():
            sums[name] = sums[name] + value.double() if name in sums else value.double()
    stats = {name: value.item() for name, value in sums.items()}
    return Totals(stats.pop("loss_sum", 0.0), weight, tokens, stats)
