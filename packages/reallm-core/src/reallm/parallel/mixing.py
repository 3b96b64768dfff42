"""A moving average: what arrives is mixed into what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.model.box import Box
from reallm.parallel.messages import Part


@dataclass(frozen=True)
class Mixing:
    """`eta * moved + (1 - eta) * onto`, as ReaL's reference models follow the actor."""

    onto: Mapping[str, Tensor]
    eta: float
    wide: torch.dtype
    """In which it is computed."""

    def put(self, part: Part, wanted: Box, values: Tensor, place: Tensor) -> None:
        """Write the mixture of a part into its place in the result.

        Two products and a sum, each rounded by itself: fused ones would round otherwise at the end of a vector
        register, so that the result depended on how a parameter is cut.
        """
        mixed = values.to(self.wide) * self.eta
        mixed += self.onto[part.name].detach()[part.box.within(wanted).slices].to(self.wide) * (1 - self.eta)
        place.copy_(mixed)

    def scratch_bytes(self, numel: int) -> int:
        """Memory that parts of so many elements take at the most: each side wide, and its product."""
        return 3 * numel * self.wide.itemsize
