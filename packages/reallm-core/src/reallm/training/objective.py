"""Objectives that an engine minimises: a sum over the tokens or samples of a batch over the batch's total weight.

Keeping sum and weight separate makes the loss of a batch independent of how it is split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from reallm.data.namedarray import NamedArray
from reallm.errors import ConfigError, kind_of
from reallm.model.transformer import Transformer


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch as a sum, and other statistics to sum."""

    loss_sum: Tensor
    """0-dim, differentiable: the sum of losses over the micro-batch, not divided by anything."""
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """0-dim sums over the micro-batch by name, such as the number of correct predictions."""


@dataclass(frozen=True)
class Totals:
    """Sums over a whole batch or data set, whose ratios are exact means."""

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
    """Computes an algorithm's loss; the engine splits batches, accumulates gradients and steps.

    For example, to weight all samples equally whatever their length, `loss_weight` is the number of samples, and `loss`
    sums the mean loss of each.
    """

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Number of tokens that each sample puts through the model, which the token budget of a micro-batch limits."""

    def loss_weight(self, batch: NamedArray) -> float:
        """The weight that the loss sum of `batch` is divided by; additive over samples."""

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """The summed loss of a micro-batch, whose tensors are on the device of the network.

        An implementation calls `network.hidden` exactly once, whatever the layout; see `PipelineRunner.run`.
        """

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics to report, such as `loss` and `accuracy`, computed from sums."""


def check_objective(objective: Objective) -> None:
    """Check that something has the methods of an objective.

    Raises:
        ConfigError: it does not, or it is a class instead of an instance.
    """
    if isinstance(objective, type):
        raise ConfigError(f"objective must be an instance; write {objective.__name__}()")
    missing = [name for name in ("n_tokens", "loss_weight", "loss", "metrics") if not hasattr(objective, name)]
    if missing:
        raise ConfigError(
            f"objective must be an Objective such as SFTInterface(), not {kind_of(objective)}, which has no method "
            f"{missing[0]}"
        )
