"""`volume`: how much a reallocation sends, from the sizes of boxes alone, without planning who sends what to whom.

A layout is a product: what a rank holds of a parameter follows from its coordinates, and most parameters of a model are
alike. The boxes of all ranks are intersected at once, which is fast for a thousand of them, where a plan takes seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import ParameterInfo
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
    before, after = _Parts.of(source, target.ranks), _Parts.of(target, target.ranks)
    received = np.zeros(target.size, dtype=np.int64)
    lacked: dict[tuple[int, ...], int] = defaultdict(int)  # stages of the source -> elements that only they have
    for stage, groups in enumerate(_alike(config, source.pp, target.pp)):
        ranks = np.flatnonzero(after.stage == stage)
        own, held = after.split[ranks], before.split[ranks]
        for stages, alike in groups:
            needed = _boxes(alike[0], _sizes(target))[own]
            missing = _n_elements(needed)
            holds = np.isin(before.stage[ranks], stages)
            missing[holds] -= _n_elements(_shared(needed[holds], _boxes(alike[0], _sizes(source))[held[holds]]))
            received[ranks] += len(alike) * missing
            lacked[stages] += len(alike) * int(missing.sum())
    of_stages = (numel / (len(stages) * source.dp * source.tp) for stages, numel in lacked.items())
    return Volume(int(received.sum()), int(received.max()), max(of_stages, default=0.0))


class _Parts(NamedTuple):
    """What determines the boxes of ranks in a layout."""

    stage: NDArray[np.int64]
    """The stage of each rank; -1 if it is not in the layout."""
    split: NDArray[np.int64]
    """Which part of the stage's parameters each rank holds: index of `_boxes`."""

    @classmethod
    def of(cls, layout: Layout, ranks: Sequence[int]) -> _Parts:
        at = np.full(max(*layout.ranks, *ranks) + 1, -1)
        at[list(layout.ranks)] = np.arange(layout.size)
        index = at[list(ranks)]
        dp = index // layout.tp % layout.dp if layout.fsdp else 0
        return cls(np.where(index < 0, -1, index // (layout.tp * layout.dp)), dp * layout.tp + index % layout.tp)


_Boxes = NDArray[np.int64]
"""Boxes [N, 2, number of dims]: where they start and stop."""
_Sizes = tuple[int, int]
"""Sizes `tp` and, with FSDP, `dp`; otherwise 1."""


def _sizes(layout: Layout) -> _Sizes:
    return layout.tp, layout.dp if layout.fsdp else 1


@lru_cache(maxsize=16384)
def _boxes(info: ParameterInfo, sizes: _Sizes) -> _Boxes:
    """The boxes of a parameter that ranks hold, with `tp` varying fastest."""
    of_tp = [tp_box(info, sizes[0], tp) for tp in range(sizes[0])]
    boxes = [fsdp_box(box, sizes[1], dp) if sizes[1] > 1 else box for dp in range(sizes[1]) for box in of_tp]
    return np.array([(box.starts, box.stops) for box in boxes], dtype=np.int64)


def _shared(one: _Boxes, other: _Boxes) -> _Boxes:
    """What the boxes of each pair share; it may start after it stops."""
    return np.stack((np.maximum(one[:, 0], other[:, 0]), np.minimum(one[:, 1], other[:, 1])), axis=1)


def _n_elements(boxes: _Boxes) -> NDArray[np.int64]:
    """The number of elements of each box."""
    return np.maximum(boxes[:, 1] - boxes[:, 0], 0).prod(axis=1)


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
