"""The parameters of a network, from its configuration alone: names, shapes and where they can be split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch

from reallm.errors import PluginError
from reallm.model.config import ReaLModelConfig
from reallm.model.sharding import Shape, Shard
from reallm.model.transformer import Transformer


@lru_cache(maxsize=16)
def parameter_shapes(config: ReaLModelConfig) -> Mapping[str, Shape]:
    """The shape of every parameter of ours, in the network's order; nothing is allocated."""
    with torch.device("meta"):
        model = Transformer(config)
    return MappingProxyType({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})


TIED = "layers.0.tokens.weight"
"""The table that a tied head shares with the embedding: with a pipeline, the last stage has it as well."""


@dataclass(frozen=True)
class ParameterInfo:
    """What a layer says of a parameter."""

    name: str
    layer: int
    """0 is the embedding, n+1 the head."""
    shape: Shape
    shard: Shard | None
    is_summed_over: bool = False
    """Whether results are added up, or put together, over the parts, so that no two ranks may have the same one."""


@lru_cache(maxsize=16)
def parameter_infos(config: ReaLModelConfig) -> tuple[ParameterInfo, ...]:
    """All parameters of a network, in its order; nothing is allocated.

    Raises:
        PluginError: a layer does not say how a parameter is split.
    """
    with torch.device("meta"):
        model = Transformer(config)
    shards, splits = model.parameter_shards(), model.module_splits()
    return tuple(
        parameter_info(name, tuple(parameter.shape), shards[name], splits, config)
        for name, parameter in model.named_parameters()
    )


def parameter_info(
    name: str, shape: Shape, shard: Shard | None, splits: Mapping[str, str], config: ReaLModelConfig
) -> ParameterInfo:
    """What is said of a parameter by its layer, and by the modules that it is in: path -> `split`.

    Raises:
        PluginError: it has no such dim.
    """
    if shard is not None and not -len(shape) <= shard.dim < len(shape):
        raise PluginError(f"'{name}' {list(shape)} has no dim {shard.dim}, by which its layer says it can be split")
    layer = int(name.split(".")[1])
    is_vocabulary = layer in (0, config.n_layers + 1)
    is_added_up = any(split != "out" and name.startswith(f"{path}.") for path, split in splits.items())
    return ParameterInfo(name, layer, shape, shard, is_vocabulary or is_added_up)
