"""What routers of experts did in a forward pass, for the load-balancing loss.

Shapes: X experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch._compile import _disable_dynamo


@dataclass(frozen=True)
class RouterStats:
    """What one layer's router did with the tokens of one forward pass."""

    counts: Tensor
    """[X]: how many of the tokens chose each expert, counted over the `top_k` choices."""
    prob_sums: Tensor
    """[X] float32, differentiable: the sum over tokens of each expert's probability."""
    n_tokens: int


class RouterStatsLog:
    """What routers did in one forward pass or several, in the order in which they ran.

    Closed, it takes no more: a block that runs again in the backward pass, as with full gradient checkpointing, is not
    counted twice, and nothing of it is kept.
    """

    def __init__(self) -> None:
        self._noted: list[RouterStats] = []
        self._is_open = True

    @_disable_dynamo  # torch.compiler.disable would import the compiler with this module, which takes seconds
    def append(self, routing: RouterStats) -> None:
        """Note what one router did; outside of compiled code, which would be compiled anew for each layer's turn."""
        if self._is_open:
            self._noted.append(routing)

    def close(self) -> list[RouterStats]:
        """What has been noted; nothing more will be."""
        noted, self._noted, self._is_open = self._noted, [], False
        return noted
