"""Splitting a batch into micro-batches within a token budget, and choosing the ones that a rank computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches, parallel_micro_batches
from reallm.parallel.mesh import Mesh
from reallm.training.objective import Objective


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the model at once."""

    batch: NamedArray
    loss_weight: float
    """Weight of its loss; 0 for a padding micro-batch, which a rank gets if it has fewer micro-batches than others:
    ranks communicate in each forward and backward pass, so that all need the same number of passes."""
    n_tokens: int


@dataclass(frozen=True)
class LocalBatch:
    """The micro-batches of a batch that one rank computes."""

    micro_batches: Sequence[MicroBatch]
    """The same number on all ranks; none for a batch without any weight."""
    loss_weight: float
    """Loss weight of the whole batch, over all ranks."""


def split_micro_batches(batch: NamedArray, objective: Objective, max_tokens: int, mesh: Mesh | None) -> LocalBatch:
    """Split a batch into micro-batches; returns this rank's, or in one process all that have a weight.

    Raises:
        DataError: a field of the batch does not tell which of its elements belong to which sample.
    """
    n_tokens = objective.n_tokens(batch)
    if mesh is None:
        cut = [_micro_batch(batch, rows, n_tokens, objective) for rows in micro_batches(n_tokens, max_tokens)]
        return LocalBatch([each for each in cut if each.loss_weight], sum(each.loss_weight for each in cut))
    loss_weight = objective.loss_weight(batch)
    if not loss_weight:
        return LocalBatch([], 0.0)
    layout = mesh.layout
    local_rows = parallel_micro_batches(n_tokens, max_tokens, layout.dp, at_least=layout.pp)[mesh.coordinate.dp]
    cut = [_micro_batch(batch, rows, n_tokens, objective) for rows in local_rows]
    if not all(each.loss_weight for each in cut):
        padding = _padding_micro_batch(batch, n_tokens, objective)
        cut = [each if each.loss_weight else padding for each in cut]
    return LocalBatch(cut, loss_weight)


def _micro_batch(batch: NamedArray, rows: Sequence[int], n_tokens: Sequence[int], objective: Objective) -> MicroBatch:
    samples = select(batch, rows)
    return MicroBatch(samples, objective.loss_weight(samples) if rows else 0.0, sum(n_tokens[row] for row in rows))


def _padding_micro_batch(batch: NamedArray, n_tokens: Sequence[int], objective: Objective) -> MicroBatch:
    """The shortest sample that has a loss, with weight 0; an objective may fail to compute a loss for others."""
    for row in sorted(range(len(n_tokens)), key=lambda row: (n_tokens[row], row)):
        sample = select(batch, [row])
        if objective.loss_weight(sample):
            return MicroBatch(sample, 0.0, n_tokens[row])
    raise AssertionError("a batch that has a weight has a sample that has one")
