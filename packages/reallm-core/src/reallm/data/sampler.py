"""Which rows each optimizer step trains on: a pure function of the seed and the step's number.

Nothing about the order of data needs to be saved: whoever knows the step knows the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from reallm.seeding import derive_seed


@dataclass(frozen=True)
class StepSampler:
    """Cuts epochs of `n_rows` shuffled rows into steps of `batch_size`; the last step of an epoch takes what is left.

    With 5 rows and 2 a step, an epoch is 3 steps of 2, 2 and 1 rows. Steps are counted from 1.
    """

    n_rows: int
    batch_size: int
    epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that go through all rows once."""
        return math.ceil(self.n_rows / self.batch_size)

    @property
    def total_steps(self) -> int:
        """All epochs, or `max_steps` if that comes first."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rows(self, step: int) -> list[int]:
        """Row numbers that `step` trains on."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        start = index * self.batch_size
        return [int(row) for row in _order(self.n_rows, self.seed, epoch)[start : start + self.batch_size]]

    def epoch_after(self, step: int) -> float:
        """How many times the data has been gone through after `step`."""
        return step / self.steps_per_epoch

    def is_due(self, step: int, every: int | None) -> bool:
        """Whether something done every so many steps, and after the last, is due after `step`; None: once an epoch."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.total_steps


@lru_cache(maxsize=2)
def _order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the rows for an epoch (counted from 0)."""
    return np.random.default_rng(derive_seed(seed, "data order", epoch)).permutation(n_rows)
