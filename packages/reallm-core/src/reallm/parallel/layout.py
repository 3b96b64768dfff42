"""Layouts: the number of ranks for data, pipeline and tensor parallelism, and which ranks. Imports no torch.

A layout is written `tp2pp1dp2`, with sizes in any order; sizes of 1 may be left out. `fsdp4` instead of `dp4` means
that the data-parallel ranks shard each parameter instead of holding copies. `@4-7` or `@0,2` names the ranks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from reallm.arguments import NamedFields
from reallm.errors import ConfigError, cut, kind_of
from reallm.field_types import check_fields
from reallm.printable import printable_line

EXAMPLE = "tp2pp1dp2, fsdp4 or dp2tp2@4-7"
MOST_RANKS = 1 << 20
"""More than any job has: lists of ranks are made."""
_SIZE = re.compile(r"(fsdp|dp|pp|tp)[=_]?([0-9]{1,18})[,_.]?")


class Coordinate(NamedTuple):
    """Coordinates of a rank in a layout, from 0."""

    dp: int
    pp: int
    tp: int


@dataclass(frozen=True)
class Layout(NamedFields):
    """A layout of `dp * pp * tp` ranks: `tp` ranks split each layer, `pp` are pipeline stages, `dp` use different data.

    `tp` varies fastest from rank to rank, then `dp`, then `pp`: tensor parallelism communicates most, pipelines least.

    Raises:
        ConfigError: a size is below 1, or the number of ranks is not the product of the sizes.
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1
    fsdp: bool = False
    """Whether FSDP2 shards each parameter along its first dim over the data-parallel ranks."""
    ranks: tuple[int, ...] = field(default=())
    """The ranks of the job, in order; empty: 0, 1, ..."""

    def __post_init__(self) -> None:
        check_fields(self, "layout")
        for name in ("dp", "pp", "tp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"layout: {name}={getattr(self, name)} must be at least 1")
        if self.size > MOST_RANKS:
            raise ConfigError(f"layout {cut(self._sizes, 60)} has more than {MOST_RANKS:,} ranks; make it smaller")
        if not self.ranks:
            object.__setattr__(self, "ranks", tuple(range(self.dp * self.pp * self.tp)))
        if len(self.ranks) != self.size or len(set(self.ranks)) != self.size or min(self.ranks) < 0:
            raise ConfigError(
                f"layout {self._sizes} takes {self.size} different ranks, not {cut(_ranks_text(self.ranks), 60)}"
            )
        if self.dp == 1:
            object.__setattr__(self, "fsdp", False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Plans look layouts up all the time."""
        return hash((self.dp, self.pp, self.tp, self.fsdp, self.ranks))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Parse text such as `tp2pp1dp2` or `fsdp2tp2@4-7`.

        Raises:
            ConfigError: the text is not a layout; shows an example.
        """
        sizes, _, ranks = text.strip().lower().partition("@")
        found = _SIZE.findall(sizes)
        by_name = {name: int(size) for name, size in found}
        if not found or _SIZE.sub("", sizes) or len(by_name) != len(found) or {"dp", "fsdp"} <= by_name.keys():
            raise ConfigError(f"'{_shown(text)}' is not a layout; write one like {EXAMPLE}")
        return cls(
            dp=by_name.get("fsdp", by_name.get("dp", 1)),
            pp=by_name.get("pp", 1),
            tp=by_name.get("tp", 1),
            fsdp="fsdp" in by_name,
            ranks=_parse_ranks(ranks, text),
        )

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.dp * self.pp * self.tp

    @cached_property
    def without_fsdp(self) -> Layout:
        """This layout, in which data-parallel ranks hold copies of parameters."""
        return replace(self, fsdp=False) if self.fsdp else self

    @cached_property
    def _coordinates(self) -> dict[int, Coordinate]:
        return {
            rank: Coordinate(index // self.tp % self.dp, index // (self.tp * self.dp), index % self.tp)
            for index, rank in enumerate(self.ranks)
        }

    def coordinate(self, rank: int) -> Coordinate | None:
        """The coordinates of a rank; None if it is not in the layout."""
        return self._coordinates.get(rank)

    def rank_at(self, *, dp: int = 0, pp: int = 0, tp: int = 0) -> int:
        """The rank with these coordinates."""
        return self.ranks[(pp * self.dp + dp) * self.tp + tp]

    def tp_ranks(self, coordinate: Coordinate) -> list[int]:
        """The ranks of a tensor-parallel group, in the order of `tp`: the ranks with this `dp` and `pp`."""
        return [self.rank_at(dp=coordinate.dp, pp=coordinate.pp, tp=tp) for tp in range(self.tp)]

    def dp_ranks(self, coordinate: Coordinate) -> list[int]:
        """The ranks of a data-parallel group, in the order of `dp`: the ranks with this `pp` and `tp`."""
        return [self.rank_at(dp=dp, pp=coordinate.pp, tp=coordinate.tp) for dp in range(self.dp)]

    def pp_ranks(self, coordinate: Coordinate) -> list[int]:
        """The ranks of a pipeline, in the order of `pp`: the ranks with this `dp` and `tp`."""
        return [self.rank_at(dp=coordinate.dp, pp=pp, tp=coordinate.tp) for pp in range(self.pp)]

    def replica_ranks(self, coordinate: Coordinate) -> list[int]:
        """The ranks that hold a copy of the whole network between them, stage by stage: those with this `dp`."""
        return [self.rank_at(dp=coordinate.dp, pp=pp, tp=tp) for pp in range(self.pp) for tp in range(self.tp)]

    def check_ascending(self, ranks: list[int]) -> None:
        """Raise ConfigError unless the ranks of a group ascend, so that a rank's number in the group is its coordinate.

        torch sorts the ranks of a group, so ranks that do not ascend would hold each other's parts of the parameters.
        """
        if ranks != sorted(ranks):
            raise ConfigError(f"the layout {self} splits parameters over ranks that must ascend; write them in order")

    @property
    def _sizes(self) -> str:
        return f"tp{self.tp}pp{self.pp}{'fsdp' if self.fsdp else 'dp'}{self.dp}"

    @cached_property
    def short(self) -> str:
        """Like `str`, but without sizes of 1: `fsdp8`, `tp2dp4@4-11`; `dp1` for a single rank."""
        sizes = {"tp": self.tp, "pp": self.pp, "fsdp" if self.fsdp else "dp": self.dp}
        chosen = "".join(f"{name}{size}" for name, size in sizes.items() if size > 1)
        return str(self).replace(self._sizes, chosen or "dp1")

    def __str__(self) -> str:
        from_zero = self.ranks == tuple(range(self.size))
        return self._sizes if from_zero else f"{self._sizes}@{_ranks_text(self.ranks)}"


def _parse_ranks(ranks_text: str, text: str) -> tuple[int, ...]:
    ranks: list[int] = []
    for part in ranks_text.split(",") if ranks_text else []:
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part.strip())
        if not match:
            raise ConfigError(f"'{_shown(text)}': '{_shown(ranks_text)}' names no ranks; write them like 4-7 or 0,2")
        first, last = int(match[1]), int(match[2] or match[1])
        if len(ranks) + last - first >= MOST_RANKS:
            raise ConfigError(f"'{_shown(text)}' names more than {MOST_RANKS:,} ranks; name those of the job")
        ranks += range(first, last + 1)
    return tuple(ranks)


def _shown(text: str) -> str:
    return cut(printable_line(text), 60)


def _ranks_text(ranks: tuple[int, ...]) -> str:
    is_whole = ranks[-1] - ranks[0] == len(ranks) - 1  # looked at first: numbers may be far apart
    if len(ranks) > 1 and is_whole and ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))


def as_layout(value: Layout | str) -> Layout:
    """A layout, given as one or as text such as `tp2pp2`.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, str):
        return Layout.parse(value)
    if not isinstance(value, Layout):
        raise ConfigError(f"a layout must be a Layout or text such as {EXAMPLE}, not {kind_of(value)}")
    return value
