"""State that all blocks of one forward pass share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from reallm.model.attention.masks import CausalMasks
from reallm.model.packed import PackedSequences
from reallm.model.rope import Rotation
from reallm.model.router_stats import RouterStatsLog

AttentionFunction = Callable[..., Tensor]
"""`attention(q, k, v, context, spec, cache)`: queries [T, H, D], rotated keys and values [T, K, D] -> [T, H, D]; see
`attention.functional.attend_rotated`."""


@dataclass(frozen=True)
class ForwardContext:
    """State that all blocks of one forward pass share: sequences, rotations, and how attention is computed."""

    seqs: PackedSequences
    rotations: tuple[Rotation, ...]
    """Rotations, one for each of `config.distinct_ropes`."""
    attention: AttentionFunction
    """Computes attention; a compiled model has one that is not compiled."""
    checkpoint_attention: bool = False
    """Whether attention without a kernel recomputes its [L, L] scores in the backward pass instead of keeping them."""
    router_stats: RouterStatsLog | None = None
    """Log in which mixture-of-experts layers record their routers' statistics; None: they are not recorded."""

    @cached_property
    def masks(self) -> CausalMasks:
        """The masks of attention, which blocks share."""
        return CausalMasks(max(self.seqs.totals, default=0))
