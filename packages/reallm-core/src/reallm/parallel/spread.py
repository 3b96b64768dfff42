"""Where parameters lie and where they are to lie: those that lie alike are looked at once, all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reallm.model.box import Box
from reallm.model.config import ReaLModelConfig
from reallm.parallel.layout import Layout
from reallm.parallel.moves import Ranks
from reallm.parallel.placement import (
    ParameterInfo,
    check_fits,
    fsdp_box,
    parameter_infos,
    stage_parameters,
    tp_box,
)

Holders = dict[Box, Ranks]
"""A part of a tensor -> the ranks that have it. No part is empty."""


@dataclass(frozen=True)
class Spread:
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


def between_layouts(config: ReaLModelConfig, source: Layout, target: Layout) -> list[Spread]:
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
        Spread(
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
) -> list[Spread]:
    """Any tensors, of which each rank has and is to have the part that stands under its number and their name."""
    before, after = _by_name(source), _by_name(target)
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, wanted in after.items():
        key = (*map(tuple, (before.get(name, {}).items(), wanted.items())), (itemsizes or {}).get(name, 1))
        alike.setdefault(key, []).append(name)
    return [
        Spread(tuple(names), before.get(names[0], {}), after[names[0]], (itemsizes or {}).get(names[0], 1))
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
