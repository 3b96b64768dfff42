"""The callback `plateau`."""

from collections.abc import Mapping
from typing import Any

from reallm.specs import RunView


class PlateauCallback:
    """Ends a run whose smoothed training loss has not fallen for 200 steps."""

    smoothing = 0.95
    patience = 200

    def __init__(self) -> None:
        self.loss: float | None = None
        self.lowest = float("inf")
        self.lowest_step = 0

    def on_step_end(self, run: RunView) -> None:
        """Update the smoothed loss, and stop if it has been too long since the lowest one."""
        loss = run.metrics["train/loss"]
        self.loss = loss if self.loss is None else self.smoothing * self.loss + (1 - self.smoothing) * loss
        if self.loss < self.lowest:
            self.lowest, self.lowest_step = self.loss, run.step
        elif run.step - self.lowest_step >= self.patience:
            run.request_stop(f"the loss has not fallen since step {self.lowest_step}")

    def state(self) -> Mapping[str, Any]:
        """What a resumed run needs to go on as if it had not been stopped."""
        lowest = None if self.loss is None else self.lowest
        return {"loss": self.loss, "lowest": lowest, "lowest_step": self.lowest_step}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.loss, self.lowest_step = state["loss"], state["lowest_step"]
        self.lowest = float("inf") if state["lowest"] is None else state["lowest"]
