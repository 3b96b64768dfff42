"""The boxes of the parameters that ranks hold before and after; parameters with equal sharding form one group."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import ParameterInfo, parameter_infos
from reallm.model.sharding import Box
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import check_fits, fsdp_box, stage_parameters, tp_box
from reallm.reallocation.types import BoxesByRank, Ranks

RanksByBox = dict[Box, Ranks]
"""Box of a tensor -> the ranks that hold it. No box is empty."""


@dataclass(frozen=True)
class TensorGroup:
    """Parameters of one shape with the same boxes on the same ranks, before and after."""

    names: tuple[str, ...]
    source: RanksByBox
    target: RanksByBox
    itemsize: int = 1
    """Bytes of an element."""

    @cached_property
    def source_box(self) -> dict[int, Box]:
        """Rank -> the box that it holds before."""
        return {rank: box for box, ranks in self.source.items() for rank in ranks}

    @cached_property
    def n_missing(self) -> dict[int, int]:
        """Rank -> number of elements that it needs but does not hold, all parameters together."""
        missing = {}
        for box, ranks in self.target.items():
            for rank in ranks:
                kept = (box & self.source_box[rank]).numel if rank in self.source_box else 0
                missing[rank] = len(self.names) * (box.numel - kept)
        return missing


def groups_between_layouts(
    config: ReaLModelConfig, source: Layout, target: Layout, names: Collection[str] | None = None
) -> list[TensorGroup]:
    """Group the parameters of a model, or those of these names, by how they are sharded in two layouts.

    In a model of many equal blocks, all blocks with the same stage before and after are in the same groups: there are
    about a dozen groups for each pair of stages, whatever the number of blocks and ranks.

    Raises:
        ConfigError: a layout does not fit the model.
    """
    check_fits(config, source)
    check_fits(config, target)
    source_stages, target_stages = _stages_by_name(config, source.pp), _stages_by_name(config, target.pp)
    infos_by_key: dict[tuple[object, ...], list[ParameterInfo]] = {}
    for info in parameter_infos(config):
        if names is not None and info.name not in names:
            continue
        key = (info.shape, info.shard, source_stages[info.name], target_stages[info.name])
        infos_by_key.setdefault(key, []).append(info)
    return [
        TensorGroup(
            tuple(info.name for info in infos),
            _ranks_by_box(infos[0], source, source_stages[infos[0].name]),
            _ranks_by_box(infos[0], target, target_stages[infos[0].name]),
        )
        for infos in infos_by_key.values()
    ]


def groups_between_boxes(
    source: BoxesByRank, target: BoxesByRank, itemsizes: Mapping[str, int] | None = None
) -> list[TensorGroup]:
    """Group arbitrary tensors by their boxes on all ranks, before and after."""
    before, after = _invert(source), _invert(target)
    names_by_key: dict[tuple[object, ...], list[str]] = {}
    for name, needed in after.items():
        key = (*map(tuple, (before.get(name, {}).items(), needed.items())), (itemsizes or {}).get(name, 1))
        names_by_key.setdefault(key, []).append(name)
    return [
        TensorGroup(tuple(names), before.get(names[0], {}), after[names[0]], (itemsizes or {}).get(names[0], 1))
        for names in names_by_key.values()
    ]


def _stages_by_name(config: ReaLModelConfig, pp: int) -> dict[str, tuple[int, ...]]:
    """The stages of each parameter: one, except for a tied embedding, which may be on the first and the last stage."""
    stages: dict[str, tuple[int, ...]] = {}
    for stage in range(pp):
        for info in stage_parameters(config, pp, stage):
            stages[info.name] = (*stages.get(info.name, ()), stage)
    return stages


def _ranks_by_box(info: ParameterInfo, layout: Layout, stages: Sequence[int]) -> RanksByBox:
    """The boxes of one parameter on all ranks at once; equal to the result of `local_boxes`."""
    found: dict[Box, list[int]] = {}
    for box, ranks in _boxes_with_ranks(info, layout, stages):
        if box.numel:
            found.setdefault(box, []).extend(ranks)
    return {box: tuple(sorted(ranks)) for box, ranks in found.items()}


def _boxes_with_ranks(info: ParameterInfo, layout: Layout, stages: Sequence[int]) -> Iterator[tuple[Box, list[int]]]:
    for tp in range(layout.tp):
        box = tp_box(info, layout.tp, tp)
        for pp in stages:
            ranks = [layout.rank_at(dp=dp, pp=pp, tp=tp) for dp in range(layout.dp)]
            if layout.fsdp:
                yield from ((fsdp_box(box, layout.dp, dp), [rank]) for dp, rank in enumerate(ranks))
            else:
                yield box, ranks


def _invert(boxes: BoxesByRank) -> dict[str, RanksByBox]:
    """Tensor name -> box -> ranks."""
    found: dict[str, dict[Box, list[int]]] = {}
    for rank in sorted(boxes):
        for name, box in boxes[rank].items():
            ranks = found.setdefault(name, {})
            if box.numel:
                ranks.setdefault(box, []).append(rank)
    return {name: {box: tuple(ranks) for box, ranks in by_box.items()} for name, by_box in found.items()}


OwnedBox = tuple[Box, Ranks]
"""A box of a tensor, and all ranks that hold it."""


class OwnerIndex:
    """Looks up the owners of any box of one tensor.

    Boxes are searched by their rows (first dim): the cost of a look-up depends only on the ranks that share rows with
    the box, not on the number of all ranks.
    """

    def __init__(self, ranks_by_box: Mapping[Box, Ranks]) -> None:
        self._owned = sorted(ranks_by_box.items(), key=lambda item: item[0].starts[:1])
        self._starts = [_row_range(box)[0] for box, _ in self._owned]
        # The largest stop so far, not each box's stop: it always ascends, and can be bisected.
        self._stops = list(accumulate((_row_range(box)[1] for box, _ in self._owned), max))
        self._disjoint = all(len(self._overlapping(box)) == 1 for box, _ in self._owned)

    def lookup(self, box: Box) -> list[OwnedBox]:
        """Cut a box into disjoint pieces, each with all its owners. Elements without an owner are left out."""
        overlapping = self._overlapping(box)
        return overlapping if self._disjoint else _disjoint_pieces(overlapping)

    def _overlapping(self, box: Box) -> list[OwnedBox]:
        """The intersections of a box with all owned boxes."""
        start, stop = _row_range(box)
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        shared = ((box & owned, ranks) for owned, ranks in self._owned[first:last])
        return [piece for piece in shared if piece[0].numel]


def _row_range(box: Box) -> tuple[int, int]:
    return (box.starts[0], box.stops[0]) if box.starts else (0, 1)


def _disjoint_pieces(overlapping: list[OwnedBox]) -> list[OwnedBox]:
    """Cut boxes, which may overlap, into disjoint ones with constant owners."""
    pieces: list[OwnedBox] = []
    for owned, ranks in overlapping:
        finer: list[OwnedBox] = []
        rest = [owned]
        for piece, owners in pieces:
            shared = piece & owned
            if not shared.numel:
                finer.append((piece, owners))
                continue
            finer.append((shared, tuple(sorted({*owners, *ranks}))))
            finer += [(outside, owners) for outside in piece - owned]
            rest = [left for box in rest for left in box - shared]
        pieces = [*finer, *((left, ranks) for left in rest)]
    return pieces
