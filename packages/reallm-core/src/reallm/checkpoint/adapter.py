"""Adapters of a model: drawn, or read from a folder in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm.checkpoint.finite import nonfinite_names
from reallm.checkpoint.load import read_boxes
from reallm.checkpoint.reader import Checkpoint, open_file
from reallm.config.lora import LoRAArgs
from reallm.errors import CheckpointError, quoted
from reallm.foreign_files import reading
from reallm.git_lfs import is_lfs_pointer
from reallm.hf.checkpoint_folder import refuse_lfs_pointer, resolve_adapter
from reallm.hf.conversion.adapter_config import adapter_config, lora_from_peft, read_adapter_config
from reallm.hf.conversion.adapter_modules import names_in_words_of, target_paths
from reallm.hf.conversion.adapter_tensors import adapter_tensors
from reallm.hf.family import HFFamily
from reallm.hf.file_names import ADAPTER_WEIGHTS_NAME
from reallm.model.adapted import initial_matrix
from reallm.model.config import ReaLModelConfig
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameter_names import (
    LORA_MAGNITUDE,
    adapter_dtype,
    head_weight_name,
    parameter_dtype,
    split_parameter_name,
)
from reallm.model.parameters import meta_model, parameter_shapes
from reallm.model.sharding import Box
from reallm.model.transformer import random_stream


@dataclass(frozen=True)
class AdapterFolder:
    """The folder of an adapter in PEFT's format.

    Raises:
        CheckpointError: when its files are read: what is wrong with them.
    """

    path: Path

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        return read_adapter_config(self.path)

    @cached_property
    def tensors(self) -> Checkpoint:
        """The tensors of its file, memory-mapped."""
        file = self.path / ADAPTER_WEIGHTS_NAME
        if not file.is_file():
            raise CheckpointError(
                f"{self.path} holds no {ADAPTER_WEIGHTS_NAME}; save the adapter with save_pretrained of a present peft"
            )
        if is_lfs_pointer(file):
            refuse_lfs_pointer(file)
        return open_file(file)

    def lora(self, family: HFFamily, config: ReaLModelConfig) -> LoRAConfig:
        """The adapters, of a model of this family and configuration.

        Raises:
            CheckpointError: they cannot be those of such a model; says why.
        """
        with reading(self.path, "copy the adapter again", problem="does not hold a whole LoRA adapter"):
            shapes = {name: info.shape for name, info in self._tensors_of(family, config).infos.items()}
            return lora_from_peft(family, config, self.raw, shapes, self.path)

    def read(self, family: HFFamily, config: ReaLModelConfig) -> dict[str, Tensor]:
        """The parameters of the adapters, whole, and the scalar head of a critic if there is one.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or is not finite, or there are further ones; names
                it.
        """
        file, found, used = self.path / ADAPTER_WEIGHTS_NAME, dict[str, Tensor](), set[str]()
        tensors = self._tensors_of(family, config)
        for one in adapter_tensors(family, config):
            if one.name not in tensors:
                if one.parameters == (head_weight_name(config),):
                    continue  # the adapter of a language model, of which a critic is made
                raise CheckpointError(f"{file} lacks '{one.name}'; copy the adapter again")
            tensor = tensors[one.name]
            try:
                parts = one.unpack(tensor)
            except ValueError as error:
                raise CheckpointError(f"{file}: tensor '{one.name}' {error}; it belongs to another model") from error
            if len(parts) > 1 and tensor.shape == one.shape and not one.is_block_diagonal(tensor):
                raise CheckpointError(
                    f"{file}: tensor '{one.name}' adapts {quoted(one.parameters)} together with rank "
                    f"{tensor.shape[-1]}; adapters of rank {one.rank} for each can be read"
                )
            found |= dict(zip(one.parameters, parts, strict=True))
            used.add(one.name)
        if further := sorted(tensors.keys() - used):
            raise CheckpointError(f"{file} has {quoted(further, 3)}, which is not part of a LoRA adapter of this model")
        if bad := nonfinite_names(found):
            raise CheckpointError(f"{file}: {quoted(bad, 1)} has values that are NaN or infinite; take an earlier one")
        return found

    def read_boxes(
        self, family: HFFamily, config: ReaLModelConfig, boxes: Mapping[str, Box], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """The boxes of those parameters that it has, as a model of this dtype holds them; see `read` for errors."""
        return {
            name: tensor[boxes[name].slices].to(parameter_dtype(name, dtype), copy=True)
            for name, tensor in self.read(family, config).items()
            if name in boxes
        }

    def _tensors_of(self, family: HFFamily, config: ReaLModelConfig) -> Checkpoint:
        """The tensors by the names that `adapter_tensors` gives them."""
        return self.tensors.renamed(names_in_words_of(family, config, self.tensors))


def with_adapters(family: HFFamily, config: ReaLModelConfig, args: LoRAArgs | None) -> ReaLModelConfig:
    """The configuration of a model with the adapters that `args` asks for; the same one if it asks for none.

    Raises:
        ConfigError: there is no such layer; lists those that there are.
        CheckpointError: the folder in `args.path` holds no adapter of this model.
    """
    if args is None or not args.is_on:
        return config
    if args.path is not None:
        found = AdapterFolder(resolve_adapter(args.path)).lora(family, config)
        lora = replace(found, dropout=args.dropout, quantize_base=args.quantize_base)
    else:
        assert args.rank is not None
        paths = target_paths(family, config, args.targets)
        lora = LoRAConfig(args.rank, args.scale, paths, args.dropout, args.rslora, args.dora, args.quantize_base)
    adapted = config.replace(lora=lora)
    adapter_config(family, adapted, None)  # what cannot be saved is refused before it is trained
    meta_model(adapted)
    return adapted


def adapter_boxes(
    args: LoRAArgs,
    folder: Path,
    family: HFFamily,
    config: ReaLModelConfig,
    boxes: Mapping[str, Box],
    dtype: torch.dtype,
    seed: int,
) -> dict[str, Tensor]:
    """The boxes of the parameters of a model's adapters: from the folder in `args.path`, or else drawn from `seed`.

    With a folder, the scalar head of a critic may be among them.

    Args:
        args: what was asked for.
        folder: the checkpoint of the base model, whose weights DoRA begins with.
        family: its family.
        config: the configuration, with the adapters.
        boxes: the boxes of adapters' parameters, and that of a critic's head.
        dtype: dtype of the base model.
        seed: seed of the matrices A; values do not depend on the boxes.

    Raises:
        CheckpointError: the folder is damaged.
    """
    if args.path is not None:
        return AdapterFolder(resolve_adapter(args.path)).read_boxes(family, config, boxes, dtype)
    shapes, found = parameter_shapes(config), dict[str, Tensor]()
    for name in (name for name in boxes if name != head_weight_name(config)):
        module, own_name = split_parameter_name(name)
        if own_name == LORA_MAGNITUDE:
            found[name] = _row_norms(f"{module}.weight", boxes[name], folder, family, config.base, dtype)
        else:
            drawn = initial_matrix(own_name, shapes[name], random_stream(name, seed))
            found[name] = drawn[boxes[name].slices].to(parameter_dtype(name, dtype), copy=True)
    return found


def _row_norms(
    weight: str, rows: Box, folder: Path, family: HFFamily, config: ReaLModelConfig, dtype: torch.dtype
) -> Tensor:
    """The lengths of some rows of a weight of the base model, whole rows even if a rank has a part of each."""
    whole = Box.whole(parameter_shapes(config)[weight])
    box = whole.narrowed(0, rows.starts[0], rows.stops[0])
    read = read_boxes(folder, family, config, {weight: box}, dtype=dtype).tensors[weight]
    return torch.linalg.vector_norm(read, dim=1, dtype=adapter_dtype(dtype))
