"""`LoRAConfig`: the low-rank adapters of a network. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from reallm.arguments import NamedFields
from reallm.errors import ConfigError

MAX_ALPHA = 1e9
"""Far more than any adapter has; the square of the scaling is still a number of float32."""


def check_alpha(alpha: float) -> None:
    """Raise ConfigError unless a value of `alpha` is allowed."""
    if not 0 < alpha <= MAX_ALPHA:
        raise ConfigError(f"alpha={alpha!r} must be greater than 0, and at most {MAX_ALPHA:g}")


@dataclass(frozen=True)
class LoRAConfig(NamedFields):
    """Low-rank adapters of linear layers (Hu et al., 2021), which alone are trained.

    The weight W of such a layer becomes `W + scaling * B @ A`, with A [rank, in] and B [out, rank].

    Raises:
        ConfigError: a value is not allowed; names the field.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Paths of the linear layers within a block, such as `attn.q`."""
    dropout: float = 0.0
    """Probability with which each input of an adapter is dropped in training."""
    rslora: bool = False
    """The scaling is `alpha / sqrt(rank)` (Kalajdzievski, 2023), not `alpha / rank`."""
    dora: bool = False
    """Each row of the adapted weight is scaled to a trained length (DoRA; Liu et al., 2024)."""
    quantize_base: Literal["nf4"] | None = None
    """Format in which blocks hold the weights of their linear layers (QLoRA; Dettmers et al., 2023)."""

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ConfigError(f"rank={self.rank!r} must be a whole number of at least 1")
        check_alpha(self.alpha)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout={self.dropout!r} must be at least 0 and less than 1")
        if not self.targets or not isinstance(self.targets, tuple):
            raise ConfigError(f"targets={self.targets!r} must be a tuple with at least one linear layer of a block")
        if self.quantize_base not in (None, "nf4"):
            raise ConfigError(f"quantize_base={self.quantize_base!r} is not nf4; it may be left out")
        if self.quantize_base is not None and self.dora:
            raise ConfigError("quantize_base=nf4 does not work with dora; leave one of the two out")

    @property
    def scaling(self) -> float:
        """The factor on `B @ A`."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
