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
        for group in groups:
            needed = group.boxes(_sizes(target))[:, own]
            missing = group.n_elements(needed)
            holds = (before.stage[ranks, None] == np.array(group.stages)).any(axis=1)
            if holds.any():
                there = group.boxes(_sizes(source))[:, held[holds]]
                missing[holds] -= group.n_elements(_shared(needed[:, holds], there))
            received[ranks] += missing
            lacked[group.stages] += int(missing.sum())
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
"""Boxes [..., 2, number of dims]: where they start and stop."""
_Sizes = tuple[int, int]
"""Sizes `tp` and, with FSDP, `dp`; otherwise 1."""


def _sizes(layout: Layout) -> _Sizes:
    return layout.tp, layout.dp if layout.fsdp else 1


@lru_cache(maxsize=16384)
def _boxes(info: ParameterInfo, sizes: _Sizes) -> _Boxes:
    """The boxes [N, 2, number of dims] of a parameter that ranks hold, with `tp` varying fastest."""
    of_tp = [tp_box(info, sizes[0], tp) for tp in range(sizes[0])]
    boxes = [fsdp_box(box, sizes[1], dp) if sizes[1] > 1 else box for dp in range(sizes[1]) for box in of_tp]
    return np.array([(box.starts, box.stops) for box in boxes], dtype=np.int64)


def _shared(one: _Boxes, other: _Boxes) -> _Boxes:
    """What the boxes of each pair share; it may start after it stops."""
    return np.stack(
        (np.maximum(one[..., 0, :], other[..., 0, :]), np.minimum(one[..., 1, :], other[..., 1, :])), axis=-2
    )


class _Group:
    """Parameters of a stage of the target that the same stages of the source hold.

    Args:
        stages: these stages of the source.
        alike: the parameters, those of one shape and split together.
    """

    def __init__(self, stages: tuple[int, ...], alike: Sequence[Sequence[ParameterInfo]]) -> None:
        self.stages = stages
        self._infos = [infos[0] for infos in alike]
        self._counts = np.array([len(infos) for infos in alike])
        self._stacked: dict[_Sizes, _Boxes] = {}

    def boxes(self, sizes: _Sizes) -> _Boxes:
        """The boxes [P, N, 2, number of dims] of one of each kind of parameters; of those with fewer dims the last
        ones have size 1."""
        found = self._stacked.get(sizes)
        if found is None:
            of_infos = [_boxes(info, sizes) for info in self._infos]
            n_dims = max(boxes.shape[-1] for boxes in of_infos)
            found = np.zeros((len(of_infos), sizes[0] * sizes[1], 2, n_dims), dtype=np.int64)
            found[..., 1, :] = 1
            for number, boxes in enumerate(of_infos):
                found[number, ..., : boxes.shape[-1]] = boxes
            self._stacked[sizes] = found
        return found

    def n_elements(self, boxes: _Boxes) -> NDArray[np.int64]:
        """The number of elements [N] of the boxes [P, N, 2, number of dims], of all parameters together."""
        return self._counts @ np.maximum(boxes[..., 1, :] - boxes[..., 0, :], 0).prod(axis=-1)


@lru_cache(maxsize=256)
def _alike(config: ReaLModelConfig, source_pp: int, target_pp: int) -> tuple[list[_Group], ...]:
    """The parameters of each stage of the target."""
    holders: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for stage in range(source_pp):
        for info in stage_parameters(config, source_pp, stage):
            holders[info.name] = (*holders[info.name], stage)
    found = []
    for stage in range(target_pp):
        groups: dict[tuple[int, ...], dict[object, list[ParameterInfo]]] = defaultdict(lambda: defaultdict(list))
        for info in stage_parameters(config, target_pp, stage):
            groups[holders[info.name]][info.shape, info.shard].append(info)
        found.append([_Group(stages, list(alike.values())) for stages, alike in groups.items()])
    return tuple(found)
