"""What an engine minimises: a sum over the tokens or samples of a batch, divided by the batch's total weight.

Keeping sum and weight apart makes the loss of a batch independent of how it is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from reallm.data.namedarray import NamedArray
from reallm.model.transformer import Transformer


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch as a sum, and whatever else is worth summing."""

    loss_sum: Tensor
    """0-dim, differentiable: the sum of losses over the micro-batch, not divided by anything."""
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """0-dim sums over the micro-batch by name, such as the number of correct predictions."""


@dataclass(frozen=True)
class Totals:
    """Sums over a whole batch or data set; ratios of them are exact means."""

    loss_sum: float = 0.0
    loss_weight: float = 0.0
    n_tokens: int = 0
    """Tokens that went through the model."""
    stats: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Totals) -> Totals:
        names = [*self.stats, *(name for name in other.stats if name not in self.stats)]
        return Totals(
            self.loss_sum + other.loss_sum,
            self.loss_weight + other.loss_weight,
            self.n_tokens + other.n_tokens,
            {name: self.stats.get(name, 0.0) + other.stats.get(name, 0.0) for name in names},
        )


class Objective(Protocol):
    """How an algorithm's loss is computed; the engine cuts batches, accumulates gradients and steps.

    An example where each sample counts the same, whatever its length: `loss_weight` is the number of samples, and
    `loss` sums the mean loss of each.
    """

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens that each sample puts through the model: what the budget of a micro-batch counts."""

    def loss_weight(self, batch: NamedArray) -> float:
        """What the loss sum of `batch` is divided by; additive over samples."""

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """The summed loss of a micro-batch, whose tensors are on the device of the network.

        It calls `network.hidden` once, whatever the layout; see `PipelineRunner.run`.
        """

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Numbers for people, such as `loss` and `accuracy`, from sums."""
