"""`volume`: how much a reallocation sends, from the sizes of boxes alone, without planning who sends what to whom.

A layout is a product: what a rank holds of a parameter follows from its coordinates, so that ranks with the same
coordinates before and after, where these matter, need equally much. That makes it fast for a thousand ranks, where a
plan takes seconds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import ParameterInfo
from reallm.model.sharding import Box
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import check_fits, fsdp_box, stage_parameters, tp_box


@dataclass(frozen=True)
class Volume:
    """Numbers of elements that a reallocation sends."""

    total: int
    """By all ranks together: exactly what a plan sends."""
    max_received: int
    """By the busiest receiver, the same in any plan."""
    min_max_sent: float
    """Lower bound: in any plan, some rank sends at least this many."""

    @property
    def busiest(self) -> float:
        """Elements that the busiest rank sends or receives, at least."""
        return max(self.max_received, self.min_max_sent)


class _Part(NamedTuple):
    """What determines a rank's boxes: its coordinates in a layout, with `dp` only where FSDP shards."""

    stage: int
    tp: int
    dp: int


class _Need(NamedTuple):
    """A box that a rank needs of several parameters of one shape and split."""

    info: ParameterInfo
    """One of them."""
    n: int
    """Number of parameters."""
    stages: tuple[int, ...]
    """The stages of the source that hold them."""
    box: Box


@lru_cache(maxsize=65536)
def volume(config: ReaLModelConfig, source: Layout, target: Layout) -> Volume:
    """What moving a model's parameters from one layout to another sends.

    Raises:
        ConfigError: a layout does not fit the model.
    """
    check_fits(config, source)
    check_fits(config, target)
    if set(source.ranks).isdisjoint(target.ranks):  # then it does not matter which ranks they are
        shift = source.size - min(target.ranks)
        return _volume(config, replace(source, ranks=()), _shifted(target, shift))
    shift = -min(*source.ranks, *target.ranks)
    return _volume(config, _shifted(source, shift), _shifted(target, shift))


def _shifted(layout: Layout, shift: int) -> Layout:
    return replace(layout, ranks=tuple(rank + shift for rank in layout.ranks))


@lru_cache(maxsize=65536)
def _volume(config: ReaLModelConfig, source: Layout, target: Layout) -> Volume:
    before_and_after = Counter((_part(source, rank), _part(target, rank)) for rank in target.ranks)
    total = max_received = 0
    lacked: dict[tuple[int, ...], int] = defaultdict(int)  # stages of the source -> elements that only they have
    for (before, after), n_ranks in before_and_after.items():
        needs = _needs(config, source.pp, _sizes(target), after)
        kept = {} if before is None else _kept(needs, _sizes(source), before)
        received = 0
        for stages, numel in needs.numel.items():
            missing = numel - kept.get(stages, 0)
            received += missing
            lacked[stages] += n_ranks * missing
        total += n_ranks * received
        max_received = max(max_received, received)
    of_stages = (numel / (len(stages) * source.dp * source.tp) for stages, numel in lacked.items())
    return Volume(total, max_received, max(of_stages, default=0.0))


_Sizes = tuple[int, int, int]
"""Sizes `pp`, `tp` and, with FSDP, `dp`; otherwise 1."""


def _sizes(layout: Layout) -> _Sizes:
    return layout.pp, layout.tp, layout.dp if layout.fsdp else 1


def _part(layout: Layout, rank: int) -> _Part | None:
    at = layout.coordinate(rank)
    return None if at is None else _Part(at.pp, at.tp, at.dp if layout.fsdp else 0)


@dataclass(frozen=True)
class _Needs:
    """What a rank needs."""

    of_rank: tuple[_Need, ...]

    @cached_property
    def numel(self) -> Mapping[tuple[int, ...], int]:
        """Number of elements by the stages of the source that hold them."""
        found: dict[tuple[int, ...], int] = defaultdict(int)
        for need in self.of_rank:
            found[need.stages] += need.n * need.box.numel
        return found


@lru_cache(maxsize=16384)
def _needs(config: ReaLModelConfig, source_pp: int, target: _Sizes, after: _Part) -> _Needs:
    """What a rank of the target needs."""
    return _Needs(
        tuple(
            _Need(alike[0], len(alike), stages, _box(alike[0], target, after))
            for stages, alike in _alike(config, source_pp, target[0])[after.stage]
        )
    )


def _kept(needs: _Needs, source: _Sizes, before: _Part) -> dict[tuple[int, ...], int]:
    """Number of elements of them that the rank holds already, by the stages of the source that hold them."""
    kept: dict[tuple[int, ...], int] = defaultdict(int)
    for need in needs.of_rank:
        if before.stage in need.stages:
            kept[need.stages] += need.n * _n_shared(need.box, _box(need.info, source, before))
    return kept


def _n_shared(one: Box, other: Box) -> int:
    """Number of elements that two boxes share."""
    sides = zip(one.starts, one.stops, other.starts, other.stops, strict=True)
    return math.prod(max(0, min(stop, until) - max(start, since)) for start, stop, since, until in sides)


@lru_cache(maxsize=65536)
def _box(info: ParameterInfo, sizes: _Sizes, part: _Part) -> Box:
    box = tp_box(info, sizes[1], part.tp)
    return fsdp_box(box, sizes[2], part.dp) if sizes[2] > 1 else box


@lru_cache(maxsize=256)
def _alike(
    config: ReaLModelConfig, source_pp: int, target_pp: int
) -> tuple[list[tuple[tuple[int, ...], list[ParameterInfo]]], ...]:
    """For each stage of the target its parameters, in groups of one shape and split that the same stages hold."""
    holders: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for stage in range(source_pp):
        for info in stage_parameters(config, source_pp, stage):
            holders[info.name] = (*holders[info.name], stage)
    found = []
    for stage in range(target_pp):
        groups: dict[tuple[object, ...], list[ParameterInfo]] = defaultdict(list)
        for info in stage_parameters(config, target_pp, stage):
            groups[holders[info.name], info.shape, info.shard].append(info)
        found.append([(holders[infos[0].name], infos) for infos in groups.values()])
    return tuple(found)
