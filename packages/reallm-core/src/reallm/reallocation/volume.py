"""`volume`: how much a reallocation sends, from the sizes of boxes alone, without planning who sends what to whom.

A layout is a product: what a rank holds of a parameter follows from its coordinates, so that ranks with the same
coordinates before and after, where these matter, need equally much. That makes it fast for a thousand ranks, where a
plan takes seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
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


@dataclass(frozen=True)
class _Kind:
    """Parameters of one shape and split that are on the same stages."""

    info: ParameterInfo
    n: int


@lru_cache(maxsize=65536)
def volume(config: ReaLModelConfig, source: Layout, target: Layout) -> Volume:
    """What moving a model's parameters from one layout to another sends.

    Raises:
        ConfigError: a layout does not fit the model.
    """
    check_fits(config, source)
    check_fits(config, target)
    pairs = Counter((_part(source, rank), _part(target, rank)) for rank in target.ranks)
    total = max_received = 0
    needed: dict[tuple[int, ...], int] = defaultdict(int)  # stages that hold elements -> elements that ranks lack
    for (before, after), n_ranks in pairs.items():
        received = 0
        for stages, numel in _missing(config, _sizes(source), before, _sizes(target), after).items():
            received += numel
            needed[stages] += n_ranks * numel
        total += n_ranks * received
        max_received = max(max_received, received)
    of_stage = max((numel / (len(stages) * source.dp * source.tp) for stages, numel in needed.items()), default=0.0)
    return Volume(total, max_received, max(of_stage, total / source.size))


_Sizes = tuple[int, int, int]
"""Sizes `pp`, `tp` and, with FSDP, `dp`; otherwise 1."""


def _sizes(layout: Layout) -> _Sizes:
    return layout.pp, layout.tp, layout.dp if layout.fsdp else 1


def _part(layout: Layout, rank: int) -> _Part | None:
    at = layout.coordinate(rank)
    return None if at is None else _Part(at.pp, at.tp, at.dp if layout.fsdp else 0)


@lru_cache(maxsize=65536)
def _missing(
    config: ReaLModelConfig, source: _Sizes, before: _Part | None, target: _Sizes, after: _Part
) -> dict[tuple[int, ...], int]:
    """Elements that a rank needs but does not hold, by the stages of the source that hold them."""
    missing: dict[tuple[int, ...], int] = defaultdict(int)
    for stages, kinds in _kinds(config, source[0], target[0])[after.stage].items():
        for kind in kinds:
            needed = _box(kind.info, target, after)
            kept = 0
            if before is not None and before.stage in stages:
                kept = (needed & _box(kind.info, source, before)).numel
            missing[stages] += kind.n * (needed.numel - kept)
    return {stages: numel for stages, numel in missing.items() if numel}


def _box(info: ParameterInfo, sizes: _Sizes, part: _Part) -> Box:
    box = _tp_box(info, sizes[1], part.tp)
    return fsdp_box(box, sizes[2], part.dp) if sizes[2] > 1 else box


_tp_box = lru_cache(maxsize=65536)(tp_box)


@lru_cache(maxsize=256)
def _kinds(
    config: ReaLModelConfig, source_pp: int, target_pp: int
) -> tuple[dict[tuple[int, ...], tuple[_Kind, ...]], ...]:
    """For each stage of the target: the stages of the source that hold its parameters -> the kinds of these."""
    holders: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for stage in range(source_pp):
        for info in stage_parameters(config, source_pp, stage):
            holders[info.name] = (*holders[info.name], stage)
    return tuple(_by_holders(stage_parameters(config, target_pp, stage), holders) for stage in range(target_pp))


def _by_holders(
    infos: Iterable[ParameterInfo], holders: dict[str, tuple[int, ...]]
) -> dict[tuple[int, ...], tuple[_Kind, ...]]:
    kinds: dict[tuple[int, ...], dict[tuple[object, ...], list[ParameterInfo]]] = defaultdict(lambda: defaultdict(list))
    for info in infos:
        kinds[holders[info.name]][info.shape, info.shard].append(info)
    return {
        stages: tuple(_Kind(alike[0], len(alike)) for alike in by_shape.values()) for stages, by_shape in kinds.items()
    }
