"""The box of each parameter that a rank holds: pure functions of the configuration and the layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from reallm.errors import ConfigError
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_WEIGHT, head_layer
from reallm.model.parameters import ParameterInfo, layout_blocker, parameter_infos, tp_units
from reallm.model.sharding import Box, units_of_rank
from reallm.parallel.layout import Layout

BoxesByRank = Sequence[Mapping[str, Box]]
"""For each tensor-parallel rank: parameter -> the box that the rank holds, in coordinates of the whole parameter."""


def stage_layers(config: ReaLModelConfig, pp: int) -> list[range]:
    """The layers of each pipeline stage; layer 0 is the embedding, n+1 the head.

    Stages get equally many blocks; a remainder goes to stages in the middle, since the first also has the embedding and
    the last the head: 5 blocks on 2 stages are layers 0-3 and 4-6, 10 blocks on 4 are 0-2, 3-5, 6-8 and 9-11.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    n = config.n_layers
    if pp > n:
        raise ConfigError(f"pp={pp} stages are too many for a model of {n} blocks; use pp={n} or less")
    n_each, remainder = divmod(n, pp)
    first = (pp - remainder) // 2
    sizes = [n_each + (first <= stage < first + remainder) for stage in range(pp)]
    bounds = [1 + sum(sizes[:stage]) for stage in range(pp + 1)]
    bounds[0], bounds[-1] = 0, n + 2
    return [range(bounds[stage], bounds[stage + 1]) for stage in range(pp)]


def stage_parameters(config: ReaLModelConfig, pp: int, stage: int) -> list[ParameterInfo]:
    """The parameters of a stage, in the network's order; the last stage has a copy of a tied embedding."""
    layers = stage_layers(config, pp)[stage]
    copy = EMBEDDING_WEIGHT if config.head_is_tied and head_layer(config) in layers else None
    return [info for info in parameter_infos(config) if info.layer in layers or info.name == copy]


def tp_box(info: ParameterInfo, tp: int, tp_rank: int) -> Box:
    """The box of a parameter that one of `tp` ranks holds, without FSDP.

    Each rank gets the same number of units. If there are fewer units than ranks, as with few KV heads, several ranks
    hold the same unit. Units of a single element, as in a vocabulary, may be divided unevenly: 7 rows on 2 ranks are 3
    and 4.

    Raises:
        ConfigError: the units cannot be divided between so many ranks.
    """
    whole, shard = Box.whole(info.shape), info.shard
    if shard is None or tp == 1:
        return whole
    dim, size = shard.dim % len(info.shape), info.shape[shard.dim]
    n_units, rest = divmod(size, shard.unit)
    are_distinct = n_units % tp == 0 or (shard.unit == 1 and n_units > tp)
    if not rest and (are_distinct or (tp % n_units == 0 and not info.needs_distinct_parts)):
        held = units_of_rank(n_units, tp, tp_rank)
        return whole.narrowed(dim, held.start * shard.unit, held.stop * shard.unit)
    units = f"{n_units} heads of {shard.unit}" if shard.unit > 1 else f"{n_units} {'columns' if dim else 'rows'}"
    raise ConfigError(
        f"tp={tp} does not fit the parameter '{info.name}' {list(info.shape)}: its {units} cannot be spread over {tp} "
        "ranks evenly"
    )


def tp_boxes(config: ReaLModelConfig, layout: Layout, stage: int) -> BoxesByRank:
    """The boxes of a stage's parameters by tensor-parallel rank, without FSDP.

    Raises:
        ConfigError: a parameter cannot be divided between the ranks.
    """
    infos = stage_parameters(config, layout.pp, stage)
    return [{info.name: tp_box(info, layout.tp, rank) for info in infos} for rank in range(layout.tp)]


def fsdp_box(box: Box, dp: int, dp_rank: int) -> Box:
    """The rows of a box that FSDP2 gives to one of `dp` ranks: `ceil(n / dp)` each, the last ranks fewer or none."""
    if not box.shape:
        return box  # scalars are not sharded
    n_rows = box.shape[0]
    chunk = -(-n_rows // dp)
    start = min(dp_rank * chunk, n_rows)
    return box.narrowed(0, start, min(start + chunk, n_rows))


@lru_cache(maxsize=4096)
def local_boxes(config: ReaLModelConfig, layout: Layout, rank: int) -> Mapping[str, Box]:
    """Parameter name -> the box that a rank holds, in the network's order; empty if the rank is not in the layout.

    Raises:
        ConfigError: the layout does not fit the heads or the layers.
    """
    check_fits(config, layout)
    coordinate = layout.coordinate(rank)
    if coordinate is None:
        return MappingProxyType({})
    infos = stage_parameters(config, layout.pp, coordinate.pp)
    boxes = {info.name: tp_box(info, layout.tp, coordinate.tp) for info in infos}
    if layout.fsdp:
        boxes = {name: fsdp_box(box, layout.dp, coordinate.dp) for name, box in boxes.items()}
    return MappingProxyType(boxes)


def check_fits(config: ReaLModelConfig, layout: Layout) -> None:
    """Raise ConfigError, naming the size or the block, unless a model can be split over a layout."""
    _check_sizes(config, layout.pp, layout.tp)


@lru_cache(maxsize=4096)
def _check_sizes(config: ReaLModelConfig, pp: int, tp: int) -> None:
    blocker = layout_blocker(config) if tp * pp > 1 else None
    if blocker is not None:
        raise ConfigError(f"{f'tp={tp}' if tp > 1 else f'pp={pp}'}: {blocker}")
    stage_layers(config, pp)
    if tp == 1:
        return
    units = tp_units(config)
    for each in units:
        if not each.fit(tp):
            fitting = [tp for tp in range(1, max(one.n for one in units) + 1) if all(one.fit(tp) for one in units)]
            raise ConfigError(
                f"tp={tp} does not fit the model's {each.n} {each.name}; use tp={' or '.join(map(str, fitting))}"
            )
    for info in parameter_infos(config):
        tp_box(info, tp, 0)
