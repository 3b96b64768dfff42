"""The metric whose best checkpoint is kept, and early stopping when it does not improve any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reallm.errors import counted
from reallm.experiments.checkpointing.state_file import Best


@dataclass
class BestMetric:
    """Follows one metric over the evaluations of a run."""

    name: str | None
    """Name of the metric; None: none is followed."""
    mode: Literal["min", "max"]
    patience: int | None
    """Number of evaluations in a row without an improvement after which training stops; None: it does not."""
    best: Best | None = None
    """The best evaluation so far."""
    evals_without_gain: int = 0
    """Evaluations since the best one."""

    def update(self, metrics: Mapping[str, float], step: int, checkpoint: str) -> bool:
        """Take the metrics of an evaluation after `step`; returns whether they are the best so far.

        A metric that is NaN or missing is no improvement. The evaluation before the first step does not count.

        Args:
            metrics: metrics of the evaluation.
            step: optimizer steps done.
            checkpoint: where the checkpoint of this step is saved if it is the best, relative to the run folder.
        """
        if self.name is None or not step:
            return False
        value = metrics.get(self.name)
        if value is None or not self._is_gain(value):
            self.evals_without_gain += 1
            return False
        self.best, self.evals_without_gain = Best(self.name, value, step, checkpoint), 0
        return True

    def _is_gain(self, value: float) -> bool:
        if value != value:
            return False
        if self.best is None or self.best.metric != self.name:
            return True
        return value < self.best.value if self.mode == "min" else value > self.best.value

    @property
    def stop_reason(self) -> str | None:
        """Why training stops early; None if it does not."""
        if self.patience is None or self.evals_without_gain < self.patience:
            return None
        since = "" if self.best is None else f" since step {self.best.step}"
        return f"{self.name} has not improved in {counted(self.evals_without_gain, 'evaluation')}{since}"
