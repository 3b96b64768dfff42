"""Statistics of a dataset before training: lengths, micro-batches of a step, and a fingerprint that identifies it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from reallm.data.datasets import Samples
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches
from reallm.data.sampler import StepSampler
from reallm.data.serialization import to_bytes

MAX_SAMPLES = 4096
"""Maximum number of samples to measure: in larger datasets the samples of the first steps, a random choice."""


@dataclass(frozen=True)
class DatasetStats:
    """Statistics of the samples of the first steps, up to a whole epoch."""

    rows: tuple[int, ...]
    """Indices of the samples that were measured."""
    lengths: tuple[int, ...]
    """Number of tokens of each measured sample; the longest sequence of one that becomes several."""
    tokens_per_step: float
    micro_batches_per_step: float
    largest: tuple[int, ...]
    """Number of tokens of each sample, or sequence of one, in the largest micro-batch."""
    is_whole: bool
    """Whether every sample of the dataset was measured."""


def measure(
    samples: Samples, sizes: Callable[[NamedArray], Sequence[int]], plan: StepSampler, max_tokens: int
) -> DatasetStats:
    """Measure the samples of the first steps.

    Args:
        samples: the training data.
        sizes: function that returns the tokens of a sample that go through the model; several numbers, if it becomes
            several sequences, such as the answers to a prompt.
        plan: the samples of each step.
        max_tokens: maximum number of tokens of a micro-batch.
    """
    n_steps = max(1, min(plan.steps_per_epoch, MAX_SAMPLES // plan.batch_size))
    rows: list[int] = []
    lengths: list[int] = []
    n_tokens = 0
    batches: list[list[int]] = []
    for step in range(1, n_steps + 1):
        rows += plan.rows(step)
        of_samples = [sizes(samples[row]) for row in plan.rows(step)]
        of_step = list(chain.from_iterable(of_samples))
        batches += [[of_step[i] for i in batch] for batch in micro_batches(of_step, max_tokens)]
        lengths += map(max, of_samples)
        n_tokens += sum(of_step)
    return DatasetStats(
        tuple(rows),
        tuple(lengths),
        tokens_per_step=n_tokens / n_steps,
        micro_batches_per_step=len(batches) / n_steps,
        largest=tuple(max(batches, key=sum)),
        is_whole=n_steps == plan.steps_per_epoch,
    )


def histogram(lengths: Sequence[int], n_bins: int = 30) -> dict[str, list[int]]:
    """Histogram `{"edges": [n+1], "counts": [n]}` with integer edges, from 0 to beyond the longest."""
    width = max(1, -(-(max(lengths) + 1) // n_bins))
    edges = list(range(0, max(lengths) + width + 1, width))
    counts, _ = np.histogram(lengths, bins=edges)
    return {"edges": edges, "counts": [int(count) for count in counts]}


def fingerprint(samples: Samples, max_hashed: int = 256) -> str:
    """Hash of the number of samples and of the content of up to `max_hashed`, evenly spaced."""
    digest = hashlib.sha256(str(len(samples)).encode())
    for row in np.linspace(0, len(samples) - 1, min(max_hashed, len(samples))).round().astype(int):
        digest.update(to_bytes(samples[int(row)]))
    return digest.hexdigest()
