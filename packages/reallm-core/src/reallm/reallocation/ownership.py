"""Where parameters lie and where they are to lie: those that lie alike are looked at once, all of them together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import ParameterInfo, parameter_infos
from reallm.model.sharding import Box
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import check_fits, fsdp_box, stage_parameters, tp_box
from reallm.reallocation.types import Ranks

Holders = dict[Box, Ranks]
"""A part of a tensor -> the ranks that have it. No part is empty."""


@dataclass(frozen=True)
class TensorGroup:
    """Parameters of one shape that have the same parts on the same ranks, before and after."""

    names: tuple[str, ...]
    held: Holders
    wanted: Holders
    itemsize: int = 1
    """What an element of them weighs."""

    @cached_property
    def held_by(self) -> dict[int, Box]:
        """The part that each rank has."""
        return {rank: box for box, ranks in self.held.items() for rank in ranks}

    @cached_property
    def n_missing(self) -> dict[int, int]:
        """Elements that each rank is to have and does not, of all the parameters together."""
        missing = {}
        for box, ranks in self.wanted.items():
            for rank in ranks:
                kept = (box & self.held_by[rank]).numel if rank in self.held_by else 0
                missing[rank] = len(self.names) * (box.numel - kept)
        return missing


def between_layouts(config: ReaLModelConfig, source: Layout, target: Layout) -> list[TensorGroup]:
    """All parameters of a model, on the way from one layout to another.

    In a model of many equal blocks, those that share their stage before and after are alike: there are about a dozen
    spreads for each pair of stages, however many blocks and ranks.

    Raises:
        ConfigError: a layout does not fit the model.
    """
    check_fits(config, source)
    check_fits(config, target)
    before, after = _stages(config, source.pp), _stages(config, target.pp)
    alike: dict[tuple[object, ...], list[ParameterInfo]] = {}
    for info in parameter_infos(config):
        alike.setdefault((info.shape, info.shard, before[info.name], after[info.name]), []).append(info)
    return [
        TensorGroup(
            tuple(info.name for info in infos),
            _holders(infos[0], source, before[infos[0].name]),
            _holders(infos[0], target, after[infos[0].name]),
        )
        for infos in alike.values()
    ]


def between_boxes(
    source: Mapping[int, Mapping[str, Box]],
    target: Mapping[int, Mapping[str, Box]],
    itemsizes: Mapping[str, int] | None = None,
) -> list[TensorGroup]:
    """Any tensors, of which each rank has and is to have the part that stands under its number and their name."""
    before, after = _by_name(source), _by_name(target)
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, wanted in after.items():
        key = (*map(tuple, (before.get(name, {}).items(), wanted.items())), (itemsizes or {}).get(name, 1))
        alike.setdefault(key, []).append(name)
    return [
        TensorGroup(tuple(names), before.get(names[0], {}), after[names[0]], (itemsizes or {}).get(names[0], 1))
        for names in alike.values()
    ]


def _stages(config: ReaLModelConfig, pp: int) -> dict[str, tuple[int, ...]]:
    """The stages that have each parameter: one, but for the table of a tied head, which two may have."""
    stages: dict[str, tuple[int, ...]] = {}
    for stage in range(pp):
        for info in stage_parameters(config, pp, stage):
            stages[info.name] = (*stages.get(info.name, ()), stage)
    return stages


def _holders(info: ParameterInfo, layout: Layout, stages: Sequence[int]) -> Holders:
    """What `placement` says of one parameter, for all ranks at once."""
    holders: dict[Box, list[int]] = {}
    for box, ranks in _parts(info, layout, stages):
        if box.numel:
            holders.setdefault(box, []).extend(ranks)
    return {box: tuple(sorted(ranks)) for box, ranks in holders.items()}


def _parts(info: ParameterInfo, layout: Layout, stages: Sequence[int]) -> Iterator[tuple[Box, list[int]]]:
    for tp in range(layout.tp):
        box = tp_box(info, layout.tp, tp)
        for pp in stages:
            ranks = [layout.rank_at(dp=dp, pp=pp, tp=tp) for dp in range(layout.dp)]
            if layout.fsdp:
                yield from ((fsdp_box(box, layout.dp, dp), [rank]) for dp, rank in enumerate(ranks))
            else:
                yield box, ranks


def _by_name(boxes: Mapping[int, Mapping[str, Box]]) -> dict[str, Holders]:
    found: dict[str, dict[Box, list[int]]] = {}
    for rank in sorted(boxes):
        for name, box in boxes[rank].items():
            holders = found.setdefault(name, {})
            if box.numel:
                holders.setdefault(box, []).append(rank)
    return {name: {box: tuple(ranks) for box, ranks in holders.items()} for name, holders in found.items()}


OwnedBox = tuple[Box, Ranks]
"""A part of a tensor, and all the ranks that have it."""


class OwnerIndex:
    """The parts of one tensor that ranks have; says of any other part in which pieces it can be had.

    Parts are found by their place along the first dim, so that a thousand ranks with some rows each cost no more than
    those that share rows with the one asked about.
    """

    def __init__(self, held: Mapping[Box, Ranks]) -> None:
        self._held = sorted(held.items(), key=lambda item: item[0].starts[:1])
        self._starts = [_span(box)[0] for box, _ in self._held]
        # Not of one part but of all up to it: these ascend, whatever the parts are, and can be searched.
        self._stops = list(accumulate((_span(box)[1] for box, _ in self._held), max))
        self._disjoint = all(len(self._overlapping(box)) == 1 for box, _ in self._held)

    def cells(self, box: Box) -> list[OwnedBox]:
        """The pieces of a part, each with all who have it. What nobody has is left out."""
        overlapping = self._overlapping(box)
        return overlapping if self._disjoint else _refined(box, overlapping)

    def _overlapping(self, box: Box) -> list[OwnedBox]:
        """What each part that is held has in common with `box`."""
        start, stop = _span(box)
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        shared = ((box & held, ranks) for held, ranks in self._held[first:last])
        return [cell for cell in shared if cell[0].numel]


def _span(box: Box) -> tuple[int, int]:
    return (box.starts[0], box.stops[0]) if box.starts else (0, 1)


def _refined(box: Box, overlapping: list[OwnedBox]) -> list[OwnedBox]:
    """Pieces that have nothing in common, of parts that may."""
    cells: list[OwnedBox] = []
    for held, ranks in overlapping:
        finer: list[OwnedBox] = []
        rest = [held]
        for piece, holders in cells:
            shared = piece & held
            if not shared.numel:
                finer.append((piece, holders))
                continue
            finer.append((shared, tuple(sorted({*holders, *ranks}))))
            finer += [(outside, holders) for outside in piece - held]
            rest = [left for part in rest for left in part - shared]
        cells = [*finer, *((left, ranks) for left in rest)]
    return cells
