"""Looks at the samples before training: how long they are, what a step will be made of, and whether they are the same
as when the run was begun."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reallm.data.datasets import Samples
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches
from reallm.data.sampler import StepSampler
from reallm.data.serialization import to_bytes

LOOKED_AT = 4096
"""Samples looked at, at the most; of larger data sets those of the first steps, which are a random choice."""


@dataclass(frozen=True)
class DatasetStats:
    """What the first steps of a plan are made of, up to a whole epoch."""

    rows: tuple[int, ...]
    """The samples looked at."""
    lengths: tuple[int, ...]
    """Tokens of each of them."""
    tokens_per_step: float
    micro_batches_per_step: float
    largest: tuple[int, ...]
    """Tokens of the samples in the largest micro-batch."""
    is_whole: bool
    """Whether every sample was looked at."""


def measure(
    samples: Samples, sizes: Callable[[NamedArray], Sequence[int]], plan: StepSampler, max_tokens: int
) -> DatasetStats:
    """Look at the samples of the first steps.

    Args:
        samples: the training data.
        sizes: tokens that each sample of a batch puts through the model, as an `Objective` says it.
        plan: which samples each step takes.
        max_tokens: of a micro-batch.
    """
    n_steps = max(1, min(plan.steps_per_epoch, LOOKED_AT // plan.batch_size))
    rows: list[int] = []
    lengths: list[int] = []
    parts: list[list[int]] = []
    for step in range(1, n_steps + 1):
        rows += plan.rows(step)
        of_step = [sum(sizes(samples[row])) for row in plan.rows(step)]
        parts += [[of_step[i] for i in part] for part in micro_batches(of_step, max_tokens)]
        lengths += of_step
    return DatasetStats(
        tuple(rows),
        tuple(lengths),
        tokens_per_step=sum(lengths) / n_steps,
        micro_batches_per_step=len(parts) / n_steps,
        largest=tuple(max(parts, key=sum)),
        is_whole=n_steps == plan.steps_per_epoch,
    )


def histogram(lengths: Sequence[int], n_bins: int = 30) -> dict[str, list[int]]:
    """`{"edges": [n+1], "counts": [n]}` with whole numbers as edges, from 0 to beyond the longest."""
    width = max(1, -(-(max(lengths) + 1) // n_bins))
    edges = list(range(0, max(lengths) + width + 1, width))
    counts, _ = np.histogram(lengths, bins=edges)
    return {"edges": edges, "counts": [int(count) for count in counts]}


def fingerprint(samples: Samples, n_looked_at: int = 256) -> str:
    """A hash of how many samples there are and of what is in some of them, evenly spread."""
    digest = hashlib.sha256(str(len(samples)).encode())
    for row in np.linspace(0, len(samples) - 1, min(n_looked_at, len(samples))).round().astype(int):
        digest.update(to_bytes(samples[int(row)]))
    return digest.hexdigest()
