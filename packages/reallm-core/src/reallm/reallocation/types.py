"""Plain data types of a reallocation plan: boxes of parameters with their source and target ranks.

Imports no torch: a plan can be made, printed and tested for a thousand ranks without running any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from reallm.model.sharding import Box

Ranks = tuple[int, ...]
"""Global ranks, ascending."""

BoxesByRank = Mapping[int, Mapping[str, Box]]
"""Rank -> tensor name -> the rank's box of that tensor, in whole-tensor coordinates."""


class Transfer(NamedTuple):
    """A box of one or more parameters that `target` gets from `source`, or keeps if both are the same rank.

    Parameters with the same shape and the same sharding, such as those of the blocks of one stage, share a transfer.
    """

    names: tuple[str, ...]
    box: Box
    """The box, in whole-tensor coordinates."""
    source: int
    target: int

    @property
    def numel(self) -> int:
        """Number of elements, all parameters together."""
        return len(self.names) * self.box.numel


@dataclass(frozen=True)
class RankPlan:
    """The transfers of one rank. The sends of `a` to `b` are in the same order as the receives of `b` from `a`."""

    sends: tuple[Transfer, ...]
    receives: tuple[Transfer, ...]
    keeps: tuple[Transfer, ...]
    """The boxes that the rank holds before and needs afterwards."""
