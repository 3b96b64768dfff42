"""What routers of experts did in a forward pass, for the load-balancing loss.

Shapes: X experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """What one layer's router did with the tokens of one forward pass."""

    counts: Tensor
    """[X]: how many of the tokens chose each expert, counted over the `top_k` choices."""
    prob_sums: Tensor
    """[X] float32, differentiable: the sum over tokens of each expert's probability."""
    n_tokens: int
