"""`TrainEngine`: optimizer steps on packed batches, cut by token budget, and exact evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches
from reallm.engine.objective import Objective, Totals
from reallm.engine.optimizer import Optimizer
from reallm.engine.optimizer_config import OptimizerConfig, lr_at
from reallm.model.transformer import Transformer
from reallm.seeding import derive_seed


class TrainEngine:
    """Trains a model on batches of any size within a memory budget.

    All that changes from step to step is the model's parameters, the optimizer's moments and `step`.

    Args:
        model: trained in place, on the device its parameters lie on.
        optimizer_config: AdamW, schedule and clipping.
        total_steps: the steps over which the learning rate follows its schedule.
        max_tokens_per_microbatch: tokens that go through the model at once; one longer sample goes alone. Results do
            not depend on it, except for the masks of dropout.
        seed: of dropout, which has a random stream of its own for each step.

    Raises:
        ConfigError: the parameters are float16.
    """

    def __init__(
        self,
        model: Transformer,
        optimizer_config: OptimizerConfig,
        total_steps: int,
        max_tokens_per_microbatch: int,
        *,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.step = 0
        """Optimizer steps done."""
        self._optimizer_config = optimizer_config
        self._optimizer = Optimizer(model.parameters(), optimizer_config)
        self._total_steps = total_steps
        self._max_tokens = max_tokens_per_microbatch
        self._seed = seed

    def train_batch(self, batch: NamedArray, objective: Objective) -> dict[str, float]:
        """One optimizer step on `batch`; its loss is the loss sum of the whole batch over its total weight.

        Returns:
            The objective's metrics before the step, and `lr`, `grad_norm`, `tokens`. A batch without any weight
            (no token carries loss) changes no parameter.

        Raises:
            ReallmError: the gradients are not finite; the parameters are as they were.
        """
        parts = self._cut(batch, objective)
        weight = sum(part_weight for _, part_weight in parts)
        lr = lr_at(self.step + 1, self._total_steps, self._optimizer_config)
        self.model.train()
        with self._random_stream():
            totals = _sum(self._forward(parts, objective, divide_by=weight))
        grad_norm = self._optimizer.step(lr) if weight else 0.0
        self.step += 1
        return {**objective.metrics(totals), "lr": lr, "grad_norm": grad_norm, "tokens": totals.tokens}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[NamedArray], objective: Objective) -> Totals:
        """Sums over all batches, without dropout and without gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            return sum((_sum(self._forward(self._cut(batch, objective), objective)) for batch in batches), Totals())
        finally:
            self.model.train(was_training)

    def _cut(self, batch: NamedArray, objective: Objective) -> list[tuple[NamedArray, float]]:
        """Micro-batches within the budget, each with its weight."""
        parts = [select(batch, rows) for rows in micro_batches(objective.sizes(batch), self._max_tokens)]
        return [(part, objective.weight(part)) for part in parts]

    def _forward(
        self, parts: Iterable[tuple[NamedArray, float]], objective: Objective, divide_by: float | None = None
    ) -> Iterator[tuple[float, int, dict[str, Tensor]]]:
        """Weight, tokens and sums of each part; with `divide_by`, also the gradients of its share of the loss."""
        device = next(self.model.parameters()).device
        for part, weight in parts:
            if not weight:
                continue
            output = objective.loss(self.model, part.to(device))
            if divide_by is not None:
                (output.loss_sum / divide_by).backward()
                self._optimizer.collect_gradients()
            yield weight, sum(objective.sizes(part)), {"loss_sum": output.loss_sum.detach(), **output.stats}

    @contextmanager
    def _random_stream(self) -> Iterator[None]:
        """Dropout draws from the global generator: give it the seed of this step, and put it back afterwards."""
        device = next(self.model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self._seed, "dropout", self.step))
            yield


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
