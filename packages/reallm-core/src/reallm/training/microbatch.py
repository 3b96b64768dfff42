"""Splitting a batch into micro-batches within a token budget, and choosing the ones that a rank computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches, parallel_micro_batches
from reallm.parallel.mesh import Mesh
from reallm.training.objective import Objective, add_by_name, check_terms, loss_weights


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the model at once."""

    batch: NamedArray
    loss_weights: Mapping[str, float]
    """Weight of each term of its loss; 0 for a padding micro-batch, which a rank gets if it has fewer micro-batches
    than others: ranks communicate in each forward and backward pass, so that all need the same number of passes."""
    n_tokens: int

    @property
    def has_loss(self) -> bool:
        """Whether a term of the loss has a weight; False for a padding micro-batch."""
        return any(self.loss_weights.values())


@dataclass(frozen=True)
class LocalBatch:
    """The micro-batches of a batch that one rank computes."""

    micro_batches: Sequence[MicroBatch]
    """The same number on all ranks; none for a batch without any weight."""
    loss_weights: Mapping[str, float]
    """Weight of each term of the loss of the whole batch, over all ranks."""

    @property
    def has_loss(self) -> bool:
        """Whether a term of the loss has a weight."""
        return any(self.loss_weights.values())

    @property
    def terms(self) -> list[str]:
        """The terms of the loss that have a weight."""
        return [term for term, weight in self.loss_weights.items() if weight]

    def combined(self, weights: Mapping[str, float]) -> float:
        """Weights of all terms of a part of the batch as one number, additive over parts.

        A term counts by its share of the weight of the whole batch, in units of the first term's weight.
        """
        unit = self.loss_weights[self.terms[0]]
        return sum(weights[term] * (unit / self.loss_weights[term]) for term in self.terms)


def split_micro_batches(batch: NamedArray, objective: Objective, max_tokens: int, mesh: Mesh | None) -> LocalBatch:
    """Split a batch into micro-batches; returns this rank's, or in one process all that have a weight.

    Raises:
        DataError: a field of the batch does not tell which of its elements belong to which sample.
        PluginError: the loss weights of two micro-batches are those of different terms.
    """
    n_tokens = objective.n_tokens(batch)
    if mesh is None:
        cut = [_micro_batch(batch, rows, n_tokens, objective) for rows in micro_batches(n_tokens, max_tokens)]
        whole: Mapping[str, float] = reduce(add_by_name, [each.loss_weights for each in cut], {})
        _check_terms(objective, cut, whole)
        return LocalBatch([each for each in cut if each.has_loss], whole)
    whole = loss_weights(objective, batch)
    if not any(whole.values()):
        return LocalBatch([], whole)
    layout = mesh.layout
    local_rows = parallel_micro_batches(n_tokens, max_tokens, layout.dp, at_least=layout.pp)[mesh.coordinate.dp]
    cut = [_micro_batch(batch, rows, n_tokens, objective) for rows in local_rows]
    _check_terms(objective, cut, whole)
    if not all(each.has_loss for each in cut):
        padding = _padding_micro_batch(batch, n_tokens, objective)
        cut = [each if each.has_loss else padding for each in cut]
    return LocalBatch(cut, whole)


def _micro_batch(batch: NamedArray, rows: Sequence[int], n_tokens: Sequence[int], objective: Objective) -> MicroBatch:
    samples = select(batch, rows)
    weights = loss_weights(objective, samples) if rows else {}
    return MicroBatch(samples, weights, sum(n_tokens[row] for row in rows))


def _check_terms(objective: Objective, cut: Sequence[MicroBatch], whole: Mapping[str, float]) -> None:
    for each in cut:
        if each.loss_weights:  # none for a micro-batch without samples
            check_terms(objective, "loss_weight", each.loss_weights, whole)


def _padding_micro_batch(batch: NamedArray, n_tokens: Sequence[int], objective: Objective) -> MicroBatch:
    """The shortest sample that has a loss, with weights of 0; an objective may fail to compute a loss for others."""
    for row in sorted(range(len(n_tokens)), key=lambda row: (n_tokens[row], row)):
        sample = select(batch, [row])
        weights = loss_weights(objective, sample)
        if any(weights.values()):
            return MicroBatch(sample, dict.fromkeys(weights, 0.0), n_tokens[row])
    raise AssertionError("a batch that has a weight has a sample that has one")
