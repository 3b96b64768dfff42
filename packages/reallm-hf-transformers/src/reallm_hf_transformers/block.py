"""Blocks of a network whose computations are those of transformers' layers.

Shapes: T packed tokens, E hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.attention.kv_cache import CacheSpec, LayerCache
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Linear
from reallm.model.packed import PackedSequences
from reallm_hf_transformers import attention
from reallm_hf_transformers.constants import Constants
from reallm_hf_transformers.frame import frame
from reallm_hf_transformers.structure import Names, part_names, structure

_NO_SPLITS = (
    "model.implementation=transformers has no tensor or pipeline parallelism; use dp, or write a family, which is also "
    "faster: reallm plugins new family NAME --model-type {model_type}"
)


class TransformersBlock(nn.Module):
    """A layer of transformers, on packed sequences.

    Its linear layers are replaced by reallm's, which can have adapters. Buffers that checkpoints hold are parameters
    that are not trained.
    """

    compile_blocker = "model.implementation=transformers"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        parts = structure(config)
        self.layer, self._constants = _own_layer(parts.layers[block], parts.model._init_weights)
        self._joined = _split_parameters(self.layer, parts.names_of(parts.layers[block]))
        self.frame, self.number = frame(config), block
        self.cache_spec = self._keys_and_values(config.hidden_size)
        self.layout_blocker = _NO_SPLITS.format(model_type=parts.model.config.model_type)
        _allocate(self)
        self._pass = attention.bind(self.layer)

    def forward(self, x: Tensor, context: ForwardContext, cache: LayerCache | None = None) -> Tensor:
        """Hidden states [T, E] -> [T, E]."""
        if self.number == 0:
            x = self.frame.enter(x, context.seqs, training=self.training)
        self._pass.context, self._pass.cache = context, cache
        try:
            return self._call(x, context.seqs)
        finally:
            self._pass.context = self._pass.cache = None

    def _call(self, x: Tensor, seqs: PackedSequences) -> Tensor:
        """Call the layer, with tensors joined of which checkpoints have parts."""
        self._constants.place(x)
        for module, name, parts in self._joined:
            setattr(module, name, torch.cat([module.get_parameter(part) for part in parts], dim=1))
        try:
            return self.frame.arguments(self.number, seqs, x).call(self.layer, x[None])[0]
        finally:
            for module, name, _ in self._joined:
                delattr(module, name)

    def _keys_and_values(self, hidden_size: int) -> CacheSpec:
        """What attention of the layer, which is on the meta device, keeps for decoding: what it is called with.

        Raises:
            ConfigError: it is called several times.
        """
        shapes = attention.bind(self.layer)
        with torch.device("cpu"):
            seqs = PackedSequences.from_lengths([2])
        with torch.no_grad():
            self.layer.eval()
            self._call(torch.empty(2, hidden_size, device="meta"), seqs)
            self.layer.train()
        if len(shapes.kept) > 1:
            name = type(self.layer).__name__
            raise ConfigError(f"{name} calls attention {len(shapes.kept)} times, and can cache only one call")
        return shapes.kept[0] if shapes.kept else ()


class FinalNorm(nn.Module):
    """The last norm of a model of transformers."""

    def __init__(self, config: ReaLModelConfig, size: int) -> None:
        super().__init__()
        parts = structure(config)
        assert parts.norm_name is not None
        self.norm, _ = _own_layer(getattr(parts.base, parts.norm_name), parts.model._init_weights)
        _allocate(self)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states [T, E] -> [T, E]."""
        return self.norm(x)


def _own_layer(layer: nn.Module, init: Any) -> tuple[nn.Module, Constants]:
    """A copy of a layer on the meta device, with what the core asks of layers, and its constants."""
    found = copy.deepcopy(layer)
    for module in found.modules():
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _own_linear(child))
    constants = Constants.of(found, init)
    for module in found.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                del module._buffers[name]
                module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
        if not isinstance(module, Linear):
            _never_split(module)
    return found, constants


def _never_split(module: nn.Module) -> None:
    """Declare that each rank has the whole parameters of a module."""
    module.shards = dict.fromkeys(name for name, _ in module.named_parameters(recurse=False))  # type: ignore[assignment]


def _allocate(module: nn.Module) -> None:
    """Give a module on the meta device memory on the device where networks are made."""
    device = torch.get_default_device()
    if device.type != "meta":
        module.to_empty(device=device)


def _own_linear(linear: nn.Linear) -> Linear:
    with torch.device(linear.weight.device):
        return Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, split=None)


def _split_parameters(layer: nn.Module, names: Mapping[str, Names]) -> list[tuple[nn.Module, str, list[str]]]:
    """Replace parameters of which checkpoints have parts by these, so that they are loaded and saved as they are.

    Args:
        layer: a layer on the meta device.
        names: names of its tensors -> in checkpoints.

    Returns:
        The modules, the names of what they had, and the names of the parameters that are its parts along dim 1.
    """
    found = []
    for path, in_file in names.items():
        if len(in_file) == 1:
            continue
        owner, _, name = path.rpartition(".")
        module, parts = layer.get_submodule(owner), part_names(name, len(in_file))
        whole = module.get_parameter(name)
        delattr(module, name)
        for part, tensor in zip(parts, whole.detach().chunk(len(parts), dim=1), strict=True):
            module.register_parameter(part, nn.Parameter(tensor.contiguous()))
        _never_split(module)
        found.append((module, name, parts))
    return found
