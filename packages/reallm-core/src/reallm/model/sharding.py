"""Declarations of the splits that tensor parallelism may use, and boxes of tensors. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

from reallm.deprecation import deprecated
from reallm.errors import PluginError


@dataclass(frozen=True, order=True)
class Box:
    """A rectangular part of a tensor: along each dim the elements from `starts` to `stops`, exclusive.

    >>> Box((0, 2), (4, 6)) & Box((1, 0), (9, 3))
    Box(starts=(1, 2), stops=(4, 3))
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The whole of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Size along each dim."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops, strict=True))

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Indices of the part in the whole tensor."""
        return tuple(slice(start, stop) for start, stop in zip(self.starts, self.stops, strict=True))

    def __and__(self, other: Box) -> Box:
        """Intersection; without elements if they are disjoint."""
        starts = tuple(max(pair) for pair in zip(self.starts, other.starts, strict=True))
        stops = tuple(min(pair) for pair in zip(self.stops, other.stops, strict=True))
        return Box(starts, tuple(max(pair) for pair in zip(starts, stops, strict=True)))

    def __sub__(self, other: Box) -> list[Box]:
        """Difference, as disjoint boxes; at most two for each dim."""
        shared = self & other
        if not shared.numel:
            return [self] if self.numel else []
        left, starts, stops = [], list(self.starts), list(self.stops)
        for dim in range(len(starts)):
            for start, stop in ((starts[dim], shared.starts[dim]), (shared.stops[dim], stops[dim])):
                if start < stop:
                    left.append(
                        Box(
                            (*starts[:dim], start, *starts[dim + 1 :]),
                            (*stops[:dim], stop, *stops[dim + 1 :]),
                        )
                    )
            starts[dim], stops[dim] = shared.starts[dim], shared.stops[dim]
        return left

    def narrowed(self, dim: int, start: int, stop: int) -> Box:
        """The part of this box from `start` to `stop` along `dim`, relative to its start."""
        begin = self.starts[dim]
        return Box(
            (*self.starts[:dim], begin + start, *self.starts[dim + 1 :]),
            (*self.stops[:dim], begin + stop, *self.stops[dim + 1 :]),
        )

    def within(self, outer: Box) -> Box:
        """This box in the coordinates of `outer`, which contains it."""
        return Box(
            tuple(start - origin for start, origin in zip(self.starts, outer.starts, strict=True)),
            tuple(stop - origin for stop, origin in zip(self.stops, outer.starts, strict=True)),
        )


@dataclass(frozen=True)
class Shard:
    """A split along `dim` into whole multiples of `unit` elements; a missing `Shard` (None) means replicated.

    Queries are split between heads, never inside one: `Shard(0, unit=head_dim)`.
    """

    dim: int
    unit: int = 1


@dataclass(frozen=True)
class TPUnits:
    """Units, such as heads, that tensor parallelism divides among ranks; a layer lists its units in `tp_units`."""

    n: int
    name: str
    """Name for messages, in the plural: `query heads`."""
    may_be_replicated: bool = False
    """Whether each unit may be held by several ranks if there are fewer units than ranks, as with KV heads."""

    def fit(self, tp: int) -> bool:
        """Whether `tp` ranks can have the same number of units."""
        return self.n % tp == 0 or (self.may_be_replicated and tp % self.n == 0)


def units_of_rank(n_units: int, tp: int, rank: int) -> range:
    """The units that one of `tp` ranks has; of fewer units than ranks, one that other ranks have too."""
    start = rank * n_units // tp
    return range(start, max(start + 1, (rank + 1) * n_units // tp))


Shards = dict[str, Shard | None]
"""Name of a parameter in its module -> how it may be split."""


Split = Literal["column", "row", "column_row"]
"""The role of a module with split parameters in tensor parallelism, in Megatron's terms:

- `"column"`: whole inputs, a part of the outputs: some rows of a weight `[out, in]`;
- `"row"`: a part of the inputs, partial sums of the outputs: some columns of the weight;
- `"column_row"`: whole inputs, partial sums of the outputs: an MLP with some of its inner features.
"""

_SPLITS_OF_1_0: dict[str, Split] = {"out": "column", "in": "row", "inside": "column_row"}


def as_split(value: str, owner: str) -> Split:
    """`value` as a `Split`; the words of hook API 1.0 (`out`, `in`, `inside`) are deprecated.

    Args:
        value: value that a layer declares.
        owner: name of the layer's class, for messages.

    Raises:
        PluginError: the value is none of them.
    """
    if value in get_args(Split):
        return cast(Split, value)
    if value not in _SPLITS_OF_1_0:
        allowed = ", ".join(f"'{each}'" for each in get_args(Split))
        raise PluginError(f"{owner} declares split='{value}', which is not one of {allowed}")
    split = _SPLITS_OF_1_0[value]
    deprecated(f"split='{value}' of {owner}", instead=f"split='{split}'", since="1.1", removed_in="2.0")
    return split


def has_partial_grad(module: object) -> bool:
    """Whether the module declares that each rank's gradient of its replicated parameters is a partial sum."""
    found = getattr(module, "partial_grad", None)
    if found is None and (found := getattr(module, "sees_part", None)) is not None:
        what = f"the attribute 'sees_part' of {type(module).__qualname__}"
        deprecated(what, instead="'partial_grad'", since="1.1", removed_in="2.0")
    return bool(found)


Shape = tuple[int, ...]
