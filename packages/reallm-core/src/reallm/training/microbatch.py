"""A batch as micro-batches within a token budget, and which of them a rank takes."""

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
    """A micro-batch."""

    batch: NamedArray
    weight: float
    """What its loss is divided by; 0 if it only stands in, where other ranks have something to do and this one has
    not: ranks talk to each other in each forward and backward pass."""
    size: int
    """Tokens that go through the model."""


@dataclass(frozen=True)
class LocalBatch:
    """What a rank has to do for a batch."""

    parts: Sequence[MicroBatch]
    """On all ranks as many; none for a batch without any weight."""
    weight: float
    """Of the whole batch."""


def split_micro_batches(batch: NamedArray, objective: Objective, max_tokens: int, mesh: Mesh | None) -> LocalBatch:
    """The micro-batches of this rank; of one process all that have a weight.

    Raises:
        DataError: a field of the batch does not say which of its elements belong to which sample.
    """
    sizes = objective.sizes(batch)
    if mesh is None:
        parts = [_part(batch, rows, sizes, objective) for rows in micro_batches(sizes, max_tokens)]
        return LocalBatch([part for part in parts if part.weight], sum(part.weight for part in parts))
    weight = objective.weight(batch)
    if not weight:
        return LocalBatch([], 0.0)
    layout = mesh.layout
    dealt = parallel_micro_batches(sizes, max_tokens, layout.dp, at_least=layout.pp)[mesh.here.dp]
    parts = [_part(batch, rows, sizes, objective) for rows in dealt]
    if not all(part.weight for part in parts):
        stand_in = _stand_in(batch, sizes, objective)
        parts = [part if part.weight else stand_in for part in parts]
    return LocalBatch(parts, weight)


def _part(batch: NamedArray, rows: Sequence[int], sizes: Sequence[int], objective: Objective) -> MicroBatch:
    part = select(batch, rows)
    return MicroBatch(part, objective.weight(part) if rows else 0.0, sum(sizes[row] for row in rows))


def _stand_in(batch: NamedArray, sizes: Sequence[int], objective: Objective) -> MicroBatch:
    """The shortest sample that has a weight, without it; of others an objective may have no loss."""
    for row in sorted(range(len(sizes)), key=lambda row: (sizes[row], row)):
        sample = select(batch, [row])
        if objective.weight(sample):
            return MicroBatch(sample, 0.0, sizes[row])
    raise AssertionError("a batch that has a weight has a sample that has one")
