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
        return [int(row) for row in _order(self.n_rows, self.seed, epoch)[start : start + self.batch_size]]

    def epoch_after(self, step: int) -> float:
        """Number of epochs done after `step`, a fraction."""
        return step / self.steps_per_epoch

    def is_due(self, step: int, every: int | None) -> bool:
        """Whether an action done every `every` steps (None: every epoch) and after the last is due after `step`."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.total_steps


@lru_cache(maxsize=2)
def _order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of the samples in an epoch (counted from 0)."""
    return np.random.default_rng(derive_seed(seed, "data order", epoch)).permutation(n_rows)
