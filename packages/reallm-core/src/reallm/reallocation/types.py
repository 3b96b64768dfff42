"""What a plan of a reallocation is made of: which part of which parameters goes from which rank to which.

Imports no torch: a plan can be made, printed and tested for a thousand ranks without one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from reallm.model.sharding import Box

Ranks = tuple[int, ...]
"""Numbers of ranks, ascending."""


class Transfer(NamedTuple):
    """A part of parameters that `target` gets from `source`; from itself if both are the same rank.

    Parameters of one shape that are spread alike, such as those of the blocks of a stage, share a move.
    """

    names: tuple[str, ...]
    box: Box
    """In coordinates of the whole parameter."""
    source: int
    target: int

    @property
    def numel(self) -> int:
        """Elements of all its parameters together."""
        return len(self.names) * self.box.numel


@dataclass(frozen=True)
class RankPlan:
    """A rank's share of a plan. What `a` sends to `b` stands in the same order in `a`'s sends and `b`'s receives."""

    sends: tuple[Transfer, ...]
    receives: tuple[Transfer, ...]
    keeps: tuple[Transfer, ...]
    """What it has already of what it is to have."""
