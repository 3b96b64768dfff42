"""Statistics of mixture-of-experts routers, for the load-balancing loss.

Shapes: X experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch._compile import _disable_dynamo


@dataclass(frozen=True)
class RouterStats:
    """Statistics of one layer's router over the tokens of one forward pass."""

    counts: Tensor
    """Number of tokens [X] that chose each expert, counted over the `top_k` choices."""
    prob_sums: Tensor
    """Sum [X] over tokens of each expert's probability, float32, differentiable."""
    n_tokens: int


class RouterStatsLog:
    """Statistics of all routers in one forward pass or several, in the order in which they ran.

    Once closed it ignores what is appended: a block that runs again in the backward pass, as with full gradient
    checkpointing, is not counted twice.
    """

    def __init__(self) -> None:
        self._stats: list[RouterStats] = []
        self._is_open = True

    @_disable_dynamo  # torch.compiler.disable would import the compiler with this module, which takes seconds
    def append(self, stats: RouterStats) -> None:
        """Record one router's statistics; outside of compiled code, which would be recompiled for each layer."""
        if self._is_open:
            self._stats.append(stats)

    def close(self) -> list[RouterStats]:
        """The recorded statistics; later ones are ignored."""
        stats, self._stats, self._is_open = self._stats, [], False
        return stats
