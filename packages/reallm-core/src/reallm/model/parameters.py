"""The parameters of a network, from its configuration alone: names, shapes and possible splits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch

from reallm.errors import PluginError
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_LAYER, head_layer, is_trained, layer_number
from reallm.model.quantized import quantized_layers
from reallm.model.sharding import Shape, Shard, TPUnits
from reallm.model.transformer import Transformer


def new_meta_model(config: ReaLModelConfig) -> Transformer:
    """A whole network on the meta device: shapes without values, no memory."""
    with torch.device("meta"):
        return Transformer(config)


@lru_cache(maxsize=8)
def meta_model(config: ReaLModelConfig) -> Transformer:
    """The network on the meta device that all who ask for shapes share, and must not change."""
    return new_meta_model(config)


@lru_cache(maxsize=16)
def parameter_shapes(config: ReaLModelConfig) -> Mapping[str, Shape]:
    """Shape of every parameter, in the network's order; nothing is allocated."""
    return MappingProxyType({name: tuple(each.shape) for name, each in meta_model(config).named_parameters()})


def n_parameters(config: ReaLModelConfig) -> int:
    """Number of elements of all parameters of the whole network, quantized or not; a tied head counts once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values()) + sum(quantized_sizes(config))


def quantized_sizes(config: ReaLModelConfig) -> list[int]:
    """Number of elements of each weight that layers hold quantized, which is no parameter of theirs."""
    layers = quantized_layers(meta_model(config)).values() if config.base_is_quantized else ()
    return [layer.out_features * layer.in_features for layer in layers]


def n_trained(config: ReaLModelConfig) -> int:
    """Number of elements of the parameters that training changes."""
    return sum(math.prod(shape) for name, shape in parameter_shapes(config).items() if is_trained(name, config))


@lru_cache(maxsize=16)
def tp_units(config: ReaLModelConfig) -> tuple[TPUnits, ...]:
    """The units that tensor parallelism divides among ranks, as the layers of a network declare them."""
    return meta_model(config).tp_units()


@lru_cache(maxsize=16)
def layout_blocker(config: ReaLModelConfig) -> str | None:
    """The reason that tensor and pipeline parallelism cannot split a network; None: they can."""
    return meta_model(config).layout_blocker if config.custom_classes else None


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter as its layer declares it."""

    name: str
    layer: int
    """Number of the layer: 0 is the embedding, n+1 the head."""
    shape: Shape
    shard: Shard | None
    """Split that tensor parallelism may use; None: replicated."""
    needs_distinct_parts: bool = False
    """Whether no two ranks may hold the same part, because outputs are summed or concatenated over the parts."""


@lru_cache(maxsize=16)
def parameter_infos(config: ReaLModelConfig) -> tuple[ParameterInfo, ...]:
    """All parameters of a network, in its order; nothing is allocated.

    Raises:
        PluginError: a layer does not declare how a parameter is split.
    """
    model = meta_model(config)
    shards, splits = model.parameter_shards(), model.module_splits()
    return tuple(
        parameter_info(name, tuple(parameter.shape), shards[name], splits, config)
        for name, parameter in model.named_parameters()
    )


def parameter_info(
    name: str, shape: Shape, shard: Shard | None, splits: Mapping[str, str], config: ReaLModelConfig
) -> ParameterInfo:
    """A parameter as its layer declares it.

    Args:
        name: full name of the parameter.
        shape: shape of the whole parameter.
        shard: split that tensor parallelism may use.
        splits: path of a module -> its `split`, for all modules of the network.
        config: configuration of the network.

    Raises:
        PluginError: `shard` names a dim that the parameter does not have.
    """
    if shard is not None and not -len(shape) <= shard.dim < len(shape):
        raise PluginError(f"'{name}' {list(shape)} has no dim {shard.dim}, along which its layer says it can be split")
    layer = layer_number(name)
    is_vocabulary = layer in (EMBEDDING_LAYER, head_layer(config))
    output_is_summed = any(split != "column" and name.startswith(f"{path}.") for path, split in splits.items())
    return ParameterInfo(name, layer, shape, shard, is_vocabulary or output_is_summed)
