"""Objectives that an engine minimises: sums over the tokens or samples of a batch over the batch's total weights.

Keeping sums and weights separate makes the loss of a batch independent of how it is split into micro-batches.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from reallm.data.batching import check_batch
from reallm.data.namedarray import NamedArray
from reallm.errors import ConfigError, PluginError, kind_of
from reallm.model.transformer import Transformer

LOSS_TERM = "loss"
"""The term of a loss that has only one, given as a number."""
T = TypeVar("T")


class LossOutput:
    """The loss of one micro-batch as sums, and other statistics to sum.

    Args:
        loss_sum: 0-dim, differentiable: the sum of losses over the micro-batch, not divided by anything. Of a loss of
            several terms, a mapping from their names to such sums.
        stats: 0-dim sums over the micro-batch by name, such as the number of correct predictions.
        maxima: 0-dim maxima over the micro-batch by name.
    """

    def __init__(
        self,
        loss_sum: Tensor | Mapping[str, Tensor],
        stats: Mapping[str, Tensor] | None = None,
        maxima: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.loss_sums: Mapping[str, Tensor] = _by_term(loss_sum)
        """The sum of each term; that of a loss of one term is called `loss`."""
        self.stats: Mapping[str, Tensor] = stats or {}
        self.maxima: Mapping[str, Tensor] = maxima or {}

    def __repr__(self) -> str:
        return f"LossOutput({dict(self.loss_sums)}, {dict(self.stats)})"

    @property
    def loss_sum(self) -> Tensor:
        """0-dim: the sum of the losses, over all terms."""
        return reduce(operator.add, self.loss_sums.values())


@dataclass(frozen=True)
class Totals:
    """Sums over a whole batch or data set, whose ratios are exact means, and maxima."""

    loss_sums: Mapping[str, float] = field(default_factory=dict)
    """Term of the loss -> its sum; 0 for a term without weight. A loss that is one number is the term `loss`."""
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    """Term of the loss -> its weight."""
    n_tokens: int = 0
    """Tokens that went through the model."""
    stats: Mapping[str, float] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            add_by_name(self.loss_sums, other.loss_sums),
            add_by_name(self.loss_weights, other.loss_weights),
            self.n_tokens + other.n_tokens,
            add_by_name(self.stats, other.stats),
            max_by_name(self.maxima, other.maxima),
        )

    @property
    def loss_sum(self) -> float:
        """The sum of the losses, over all terms."""
        return sum(self.loss_sums.values(), 0.0)

    @property
    def loss_weight(self) -> float:
        """The sum of the weights, over all terms; 0 if nothing carries loss."""
        return sum(self.loss_weights.values(), 0.0)

    @property
    def means(self) -> dict[str, float]:
        """Term of the loss -> its sum over its weight; without the terms that have no weight."""
        return {term: self.loss_sums[term] / weight for term, weight in self.loss_weights.items() if weight}

    @property
    def loss(self) -> float:
        """The loss: the sum of the means of all terms; 0 if nothing carries loss."""
        return sum(self.means.values(), 0.0)


class Objective(Protocol):
    """Computes an algorithm's loss; the engine splits batches, accumulates gradients and steps.

    For example, to weight all samples equally whatever their length, `loss_weight` is the number of samples, and `loss`
    sums the mean loss of each.

    A loss may have several terms, each with a weight of its own: then `loss_weight` and the `loss_sum` of `loss` are
    mappings from the same names. The loss is the sum over the terms of (sum over the whole batch) / (weight of the
    whole batch). A term whose weight in a batch is 0 contributes nothing.

    With an optional method `prepare(batch: NamedArray) -> NamedArray`, the batch is replaced by what it returns before
    it is cut into micro-batches, in training and in evaluation. Every rank prepares the whole batch, so that
    coefficients which depend on all of it, such as advantages normalised over a step, can be written into a field;
    samples may be cut, see `split_groups`. All other methods get parts of the prepared batch.

    With an optional attribute `dropout = False`, the forward passes of training have no dropout and no other noise
    either, whatever the model's configuration says: those of a ratio of probabilities, for example.
    """

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Number of tokens that each sample puts through the model, which the token budget of a micro-batch limits."""

    def loss_weight(self, batch: NamedArray) -> float | Mapping[str, float]:
        """The weight that the loss sum of `batch` is divided by, or that of each term; additive over samples."""

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
    if not isinstance(dropout := trains_with_dropout(objective), bool):
        raise ConfigError(f"{type(objective).__name__}.dropout={dropout!r} must be True or False")


def trains_with_dropout(objective: Objective) -> bool:
    """Whether an objective leaves on the dropout that the model's configuration asks for, in training."""
    return getattr(objective, "dropout", True)


@torch.no_grad()
def prepare(objective: Objective, batch: Any) -> NamedArray:
    """The batch as the objective prepares it; see `Objective`.

    Raises:
        DataError: it is not a `NamedArray`.
        PluginError: what the objective returns is not one.
    """
    check_batch(batch)
    if not hasattr(objective, "prepare"):
        return batch
    prepared = objective.prepare(batch)
    if not isinstance(prepared, NamedArray):
        raise PluginError(
            f"{type(objective).__name__}.prepare must return the batch as a NamedArray, not {kind_of(prepared)}"
        )
    return prepared


def loss_weights(objective: Objective, batch: NamedArray) -> Mapping[str, float]:
    """Term of the loss -> the weight of `batch`."""
    weights = _by_term(objective.loss_weight(batch))
    return {term: weight if isinstance(weight, int | float) else float(weight) for term, weight in weights.items()}


def check_terms(objective: Objective, method: str, terms: Iterable[str], weights: Mapping[str, float]) -> None:
    """Check that a method names the same terms as the weights of the whole batch.

    Raises:
        PluginError: it names others.
    """
    if set(terms) != weights.keys():
        name = type(objective).__name__
        raise PluginError(
            f"{name}.{method} of a micro-batch gives the loss terms {', '.join(terms)}, but "
            f"{name}.loss_weight of the whole batch {', '.join(weights)}; both must always name the same terms, those "
            "without weight too"
        )


def add_by_name(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    """Sums of the numbers of two mappings; a name that one lacks counts as 0 there."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in {**left, **right}}


def max_by_name(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    """The larger numbers of two mappings, of which one may lack a name."""
    return {name: max(each[name] for each in (left, right) if name in each) for name in {**left, **right}}


def _by_term(value: T | Mapping[str, T]) -> Mapping[str, T]:
    return value if isinstance(value, Mapping) else {LOSS_TERM: value}
