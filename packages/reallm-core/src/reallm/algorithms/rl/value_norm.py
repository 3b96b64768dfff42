"""Running mean and standard deviation of returns, by which a critic's targets are shifted and scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor


class ValueNorm:
    """Running mean and standard deviation of returns, computed in float64 from the first two moments.

    Before the first update they are 0 and 1.

    Args:
        kind: `exp`, exponential moving averages over steps, without the bias towards their start; or `ma`, averages
            over all returns so far.
        beta: weight of earlier steps for `exp`.
        eps: smallest variance.
    """

    def __init__(self, kind: Literal["exp", "ma"], beta: float, eps: float) -> None:
        self._kind, self._beta, self._eps = kind, beta, eps
        self._weight = self._sum = self._sum_of_squares = 0.0

    @property
    def mean(self) -> float:
        """The running mean."""
        return self._sum / self._weight if self._weight else 0.0

    @property
    def std(self) -> float:
        """The running standard deviation."""
        if not self._weight:
            return 1.0
        return float(max(self._sum_of_squares / self._weight - self.mean**2, self._eps) ** 0.5)

    def update(self, returns: Tensor) -> None:
        """Count the returns of a step; without any, nothing changes."""
        if not len(returns):
            return
        returns = returns.double()
        keep, weight = (self._beta, (1 - self._beta) / len(returns)) if self._kind == "exp" else (1.0, 1.0)
        self._weight = keep * self._weight + weight * len(returns)
        self._sum = keep * self._sum + weight * float(returns.sum())
        self._sum_of_squares = keep * self._sum_of_squares + weight * float(returns.square().sum())

    def normalize(self, values: Tensor) -> Tensor:
        """Values minus the mean, over the standard deviation."""
        return (values - self.mean) / self.std

    def denormalize(self, values: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        return values * self.std + self.mean

    def state(self) -> dict[str, float]:
        """The sums."""
        return {"weight": self._weight, "sum": self._sum, "sum_of_squares": self._sum_of_squares}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore them."""
        self._weight, self._sum, self._sum_of_squares = state["weight"], state["sum"], state["sum_of_squares"]
