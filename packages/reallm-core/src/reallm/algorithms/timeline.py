"""`Span`: something that one rank did from one moment to another, measured or simulated.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SpanKind = Literal["call", "move", "reload", "offload", "data", "wait"]
"""What a rank does: a model function call; a move of weights between two copies of a model; loading a copy from host
memory, or moving it there; receiving outputs of another call; waiting for another rank."""


@dataclass(frozen=True)
class Span:
    """Something that one rank did from one moment to another."""

    rank: int
    kind: SpanKind
    name: str
    """A call, `actor` for a copy of that role's model, or `rewards -> actor_train` for what is sent between calls."""
    start: float
    """Seconds, on a clock that all ranks share."""
    end: float
    bytes: int = 0
    """Bytes that this rank received or moved."""
