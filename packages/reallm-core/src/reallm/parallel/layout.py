"""How a model is spread over ranks: data, pipeline and tensor parallelism. Imports no torch.

A layout is written `tp2pp1dp2`, parts in any order and those of size 1 left out; `fsdp4` in place of `dp4` says that
the data-parallel ranks hold a part of each parameter instead of a copy. `@4-7` or `@0,2` says on which ranks it lies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from reallm.errors import ConfigError

EXAMPLE = "tp2pp1dp2, fsdp4 or dp2tp2@4-7"


class Coordinate(NamedTuple):
    """Coordinates of a rank in a layout."""

    dp: int
    pp: int
    tp: int


@dataclass(frozen=True)
class Layout:
    """`dp * pp * tp` ranks: `tp` split each layer, `pp` follow each other in a pipeline, `dp` work on other data.

    Neighbouring ranks differ in `tp` first, then in `dp`, then in `pp`: tensor parallelism talks most, pipelines least.

    Raises:
        ConfigError: a size below 1, or another number of ranks than the sizes ask for.
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1
    fsdp: bool = False
    """Whether each parameter is split along its first dim over the data-parallel ranks, as FSDP2 does."""
    ranks: tuple[int, ...] = field(default=())
    """The ranks it lies on; empty: from 0 on."""

    def __post_init__(self) -> None:
        for name in ("dp", "pp", "tp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"layout: {name}={getattr(self, name)} must be at least 1")
        if not self.ranks:
            object.__setattr__(self, "ranks", tuple(range(self.dp * self.pp * self.tp)))
        if len(self.ranks) != self.size or len(set(self.ranks)) != self.size or min(self.ranks) < 0:
            raise ConfigError(f"layout {self._sizes} takes {self.size} different ranks, not {_shown(self.ranks)}")
        if self.dp == 1:
            object.__setattr__(self, "fsdp", False)

    @classmethod
    def parse(cls, text: str) -> Layout:
        """From text such as `tp2pp1dp2` or `fsdp2tp2@4-7`.

        Raises:
            ConfigError: it is no layout; says what one looks like.
        """
        sizes, _, where = text.strip().lower().partition("@")
        parts = re.findall(r"(fsdp|dp|pp|tp)[=_]?(\d+)[,_.]?", sizes)
        found = {name: int(size) for name, size in parts}
        read = re.sub(r"(fsdp|dp|pp|tp)[=_]?(\d+)[,_.]?", "", sizes)
        if not parts or read or len(found) != len(parts) or {"dp", "fsdp"} <= found.keys():
            raise ConfigError(f"'{text}' is no layout; write one like {EXAMPLE}")
        fsdp = "fsdp" in found
        return cls(
            found.get("fsdp", found.get("dp", 1)), found.get("pp", 1), found.get("tp", 1), fsdp, _ranks(where, text)
        )

    @property
    def size(self) -> int:
        """How many ranks it takes."""
        return self.dp * self.pp * self.tp

    @cached_property
    def _places(self) -> dict[int, Coordinate]:
        return {
            rank: Coordinate(index // self.tp % self.dp, index // (self.tp * self.dp), index % self.tp)
            for index, rank in enumerate(self.ranks)
        }

    def place(self, rank: int) -> Coordinate | None:
        """The coordinates of a rank; None if it is not in the layout."""
        return self._places.get(rank)

    def rank_at(self, *, dp: int = 0, pp: int = 0, tp: int = 0) -> int:
        """The rank with these coordinates."""
        return self.ranks[(pp * self.dp + dp) * self.tp + tp]

    def tp_ranks(self, place: Coordinate) -> list[int]:
        """The ranks that differ from a place in `tp` only, in order; so do the next two for `dp` and `pp`."""
        return [self.rank_at(dp=place.dp, pp=place.pp, tp=tp) for tp in range(self.tp)]

    def dp_ranks(self, place: Coordinate) -> list[int]:
        """See `tp_ranks`."""
        return [self.rank_at(dp=dp, pp=place.pp, tp=place.tp) for dp in range(self.dp)]

    def pp_ranks(self, place: Coordinate) -> list[int]:
        """See `tp_ranks`."""
        return [self.rank_at(dp=place.dp, pp=pp, tp=place.tp) for pp in range(self.pp)]

    @property
    def _sizes(self) -> str:
        return f"tp{self.tp}pp{self.pp}{'fsdp' if self.fsdp else 'dp'}{self.dp}"

    def __str__(self) -> str:
        from_zero = self.ranks == tuple(range(self.size))
        return self._sizes if from_zero else f"{self._sizes}@{_shown(self.ranks)}"


def _ranks(where: str, text: str) -> tuple[int, ...]:
    ranks: list[int] = []
    for part in where.split(",") if where else []:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise ConfigError(f"'{text}': '{where}' names no ranks; write them like 4-7 or 0,2")
        first = int(match[1])
        ranks += range(first, int(match[2] or first) + 1)
    return tuple(ranks)


def _shown(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 1 and ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))
