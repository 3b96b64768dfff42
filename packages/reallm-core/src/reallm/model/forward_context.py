"""What all blocks of one forward pass share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from reallm.model.attention.functional import attend_rotated
from reallm.model.packed import PackedSequences
from reallm.model.rope import Rotation
from reallm.model.router_stats import RouterStatsLog


@dataclass(frozen=True)
class ForwardContext:
    """What all blocks of one forward pass share: the sequences, the rotations of their tokens, how attention is run."""

    seqs: PackedSequences
    rotations: tuple[Rotation, ...]
    """One for each of `config.distinct_ropes`."""
    checkpoint_attention: bool = False
    """Whether the backward pass computes the [L, L] scores of attention without a kernel again, or they are kept."""
    attention: Callable[..., Tensor] = attend_rotated
    routing: RouterStatsLog | None = None
    """Where layers of experts note what their routers did; None where nobody asks."""
