"""Choice of the samples of each optimizer step, a pure function of seed and step: no data order must be saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from reallm.seeding import derive_seed


@dataclass(frozen=True)
class StepSampler:
    """Splits epochs of `n_rows` shuffled samples into steps of `batch_size`; the last step of an epoch may be smaller.

    With 5 samples and a batch size of 2, an epoch is 3 steps of 2, 2 and 1 samples. Steps are counted from 1.
    """

    n_rows: int
    batch_size: int
    epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return math.ceil(self.n_rows / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of all epochs, or `max_steps` if that is fewer."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rows(self, step: int) -> list[int]:
        """Indices of the samples that `step` trains on."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        start = index * self.batch_size
        return [int(row) for row in self._order(epoch)[start : start + self.batch_size]]

    def epoch_after(self, step: int) -> float:
        """Number of epochs done after `step`, a fraction."""
        return step / self.steps_per_epoch

    def is_due(self, step: int, every: int | None) -> bool:
        """Whether an action done every `every` steps (None: every epoch) and after the last is due after `step`."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.total_steps

    def _order(self, epoch: int) -> np.ndarray:
        """Indices of the samples of an epoch (counted from 0), in order, int64 [n_rows]."""
        return _shuffled(self.n_rows, self.seed, epoch)


@dataclass(frozen=True)
class MixtureSampler(StepSampler):
    """Takes a fixed number of samples of each source in an epoch, in random order.

    Each source is read in passes of its own, each pass shuffled: a source of 100 samples of which an epoch takes 150
    is read once and a half in the first epoch, and goes on in the middle of its second pass in the next one. Samples
    are numbered source after source, see `MixedSamples`.

    Args:
        names: names of the sources.
        sizes: number of samples of each source; `n_rows` is their sum.
        quotas: samples of each source in an epoch, `n_rows` in sum.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    quotas: tuple[int, ...] = ()

    def _order(self, epoch: int) -> np.ndarray:
        return _mixed(self.seed, epoch, self.names, self.sizes, self.quotas)


@lru_cache(maxsize=2)
def _shuffled(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of the samples in an epoch."""
    return np.random.default_rng(derive_seed(seed, "data order", epoch)).permutation(n_rows)


@lru_cache(maxsize=2)
def _mixed(
    seed: int, epoch: int, names: tuple[str, ...], sizes: tuple[int, ...], quotas: tuple[int, ...]
) -> np.ndarray:
    """The samples of an epoch of a mixture."""
    turns = np.repeat(np.arange(len(names)), quotas)
    turns = np.random.default_rng(derive_seed(seed, "turns of sources", epoch)).permutation(turns)
    order = np.empty(len(turns), np.int64)
    starts = np.cumsum([0, *sizes[:-1]])
    for source, (name, size, quota) in enumerate(zip(names, sizes, quotas, strict=True)):
        first = epoch * quota
        passes = [
            np.random.default_rng(derive_seed(seed, "data order", name, number)).permutation(size)
            for number in range(first // size, (first + quota - 1) // size + 1)
        ]
        begin = first % size
        order[turns == source] = starts[source] + np.concatenate(passes)[begin : begin + quota]
    return order
