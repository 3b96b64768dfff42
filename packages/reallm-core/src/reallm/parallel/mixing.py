"""A moving average: what arrives is mixed into what is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """`eta * moved + (1 - eta) * there`, as ReaL's reference models follow the actor."""

    eta: float
    wide: torch.dtype
    """In which it is computed."""

    def put(self, values: Tensor, place: Tensor) -> None:
        """Mix a part of what was moved into its place.

        Two products and a sum, each rounded by itself: fused ones would round otherwise at the end of a vector
        register, so that the result depended on how a parameter is cut.
        """
        mixed = values.to(self.wide) * self.eta
        mixed += place.to(self.wide) * (1 - self.eta)
        place.copy_(mixed)

    def scratch_bytes(self, numel: int) -> int:
        """Memory that parts of so many elements take at the most: each side wide, and its product."""
        return 3 * numel * self.wide.itemsize
