"""One step of the engine as the scheduler plans it: which tokens of which sequences, and where their cache is.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Row:
    """Contiguous room for the cache of one sequence: row `index` of the tensors for `capacity` tokens."""

    capacity: int
    index: int


@dataclass(frozen=True)
class Pages:
    """Room for the cache of one sequence in pages of equal size, some of which other sequences may read too."""

    ids: tuple[int, ...]


Placement = Row | Pages


@dataclass(frozen=True)
class CacheCopy:
    """Copy of the first tokens of a cached sequence to another place, made before the pass of its step, in order."""

    source: Placement
    target: Placement
    n_tokens: int


@dataclass(frozen=True)
class ScheduledSequence:
    """The tokens of a sequence that one pass computes: those at positions `n_cached` to `n_cached + n_new`."""

    sequence_id: int
    n_cached: int
    n_new: int
    placement: Placement
    samples: bool
    """Whether the logits of its last token are sampled; not in the middle of a prompt."""


@dataclass(frozen=True)
class Step:
    """What one forward pass of the engine computes."""

    sequences: tuple[ScheduledSequence, ...]
    copies: tuple[CacheCopy, ...] = ()
    n_rows: Mapping[int, int] = field(default_factory=dict)
    """Capacity of rows -> number of rows 0 to n - 1 that must be there once the copies are made, and be kept for later
    steps; further ones can be freed. Empty for pages."""
