"""How a parameter may be split under tensor parallelism: stated once, on the layer that owns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Shard:
    """Split along `dim` into whole multiples of `unit` elements; a missing `Shard` (None) means replicated.

    Queries are split between heads, never inside one: `Shard(0, unit=head_dim)`.
    """

    dim: int
    unit: int = 1


Shards = dict[str, Shard | None]
"""Shard of each parameter of a module, by its name there."""

Split = Literal["out", "in", "inside"]
"""The `split` of a module whose parameters are split:

- `"out"`: it takes whole inputs and gives a part of the outputs, as some rows of a linear layer do;
- `"in"`: it takes a part of the inputs and gives what is to be added up over the parts, as its columns do;
- `"inside"`: it takes whole inputs and gives what is to be added up over the parts, as an MLP with some of its inner
  features.
"""
