"""Adapters in PEFT's format: the linear layers that can have one, the names of its tensors, `adapter_config.json`.

A projection of the checkpoint that holds several of ours, such as `qkv_proj`, has one adapter in PEFT, while each of
ours has its own. Several of rank r are one of rank n * r, whose B is block-diagonal. The other way round, one of rank r
is n of rank r with the same A.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm.errors import CheckpointError, ConfigError, did_you_mean, quoted
from reallm.hf.conversion.mapping import WeightMapping, weight_mappings
from reallm.hf.family import HFFamily
from reallm.hf.file_names import ADAPTER_CONFIG_NAME
from reallm.hf.tables.arrangements import Arrangement, Fused, Same, Transposed
from reallm.model.config import ReaLModelConfig
from reallm.model.layers import Linear
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameter_names import (
    LORA_A,
    LORA_B,
    LORA_MAGNITUDE,
    block_layers,
    head_weight_name,
    module_of,
    path_in_layer,
)
from reallm.model.parameters import meta_model
from reallm.model.sharding import Shape

ALL_LINEAR = "all-linear"
"""The name that means all linear layers of blocks, as in PEFT."""
PEFT_PREFIX = "base_model.model."
"""Prefix of the names of an adapter's tensors: PEFT's class, and the one that it wraps."""

_SUPPORTED_KEYS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
"""Keys of `adapter_config.json` that are read, or do not change what a saved adapter computes."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that change the weights of the base model too."""


@dataclass(frozen=True)
class LinearModule:
    """A linear layer of the checkpoint's model in a block, and ours that it holds."""

    mapping: WeightMapping

    @property
    def name(self) -> str:
        """Its name in the checkpoint: `model.layers.2.self_attn.q_proj`."""
        return module_of(self.mapping.hf_names[0])

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of our layers within the block: `attn.q`."""
        return tuple(module_of(path_in_layer(name)) for name in self.mapping.parameters)

    @property
    def name_in_block(self) -> str:
        """Its name after the number of the block: `self_attn.q_proj`."""
        return self.name.rpartition(f".{self.mapping.layer - 1}.")[2]

    @property
    def is_transposed(self) -> bool:
        """Whether its weight is stored as [in, out]."""
        return isinstance(self.mapping.arrangement, Transposed)

    @property
    def of_outputs(self) -> Arrangement:
        """The arrangement of our outputs in its outputs."""
        arrangement = self.mapping.arrangement
        return arrangement.of if isinstance(arrangement, Transposed) else arrangement


@lru_cache(maxsize=16)
def linear_modules(family: HFFamily, config: ReaLModelConfig) -> tuple[LinearModule, ...]:
    """The linear layers of the checkpoint's model that can have adapters, in all blocks."""
    config = config.base
    network = meta_model(config)
    plain = {f"{path}.weight" for path, module in network.named_modules() if type(module) is Linear}
    return tuple(
        LinearModule(mapping)
        for mapping in weight_mappings(family, config)
        if mapping.layer in block_layers(config)
        and plain.issuperset(mapping.parameters)
        and len(mapping.hf_names) == 1
        and isinstance(LinearModule(mapping).of_outputs, Same | Fused)
    )


def target_paths(family: HFFamily, config: ReaLModelConfig, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Paths of our layers in a block for the names of a checkpoint's modules, `all-linear` or as in PEFT.

    A name means all modules that end with it: `q_proj`, or `self_attn.q_proj`.

    Raises:
        ConfigError: the blocks have no such linear layer; lists those that there are.
    """
    modules = linear_modules(family, config)
    names = [targets] if isinstance(targets, str) else list(targets)
    found: set[str] = set()
    for name in names:
        paths = {path for one in modules if name == ALL_LINEAR or _ends_with(one.name, name) for path in one.paths}
        if not paths:
            known = list(dict.fromkeys(one.name_in_block.rpartition(".")[2] for one in modules))
            raise ConfigError(
                f"targets: '{name}' is not a linear layer of the model's blocks{did_you_mean(name, known)}; they have "
                f"{', '.join(known)}, and {ALL_LINEAR} means all of them"
            )
        found |= paths
    # in the order in which blocks have them, so that equal targets are equal
    return tuple(dict.fromkeys(path for one in modules for path in one.paths if path in found))


def _ends_with(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


@dataclass(frozen=True)
class AdapterTensor:
    """A tensor of an adapter's file, and the parameters that it is made from."""

    name: str
    parameters: tuple[str, ...]
    shapes: tuple[Shape, ...]
    """Shapes of the parameters."""
    shape: Shape
    """Its shape as we write it."""
    arrangement: Arrangement
    """The arrangement of our outputs in its outputs."""
    config: ReaLModelConfig
    rank: int

    @property
    def kind(self) -> str:
        """The last part of the parameters' names."""
        return self.parameters[0].rpartition(".")[2]

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor, made from the whole parameters."""
        if len(parts) == 1:
            return parts[0]
        if self.kind == LORA_A:
            return torch.cat(list(parts))
        packed = parts[0].new_zeros(self.shape)
        for number, (view, part) in enumerate(zip(self._views(packed), parts, strict=True)):
            own = view if self.kind == LORA_MAGNITUDE else view[..., self._columns(number)]
            own.copy_(part.reshape(own.shape))
        return packed

    def unpack(self, tensor: Tensor) -> list[Tensor]:
        """The whole parameters.

        Raises:
            ValueError: the tensor has no such shape.
        """
        n = len(self.parameters)
        if n == 1:
            parts = [tensor]
        elif self.kind == LORA_A:
            parts = list(tensor.split(self.rank)) if len(tensor) == n * self.rank else [tensor] * n
        else:
            views = self._views(tensor)
            if self.kind == LORA_B and tensor.shape[1] == n * self.rank:
                views = [view[..., self._columns(number)] for number, view in enumerate(views)]
            parts = [view.reshape(-1, *view.shape[-1:]) if self.kind == LORA_B else view.flatten() for view in views]
        if [tuple(part.shape) for part in parts] != list(self.shapes):
            raise ValueError(f"has the shape {list(tensor.shape)}, not {list(self.shape)}")
        return parts

    def is_block_diagonal(self, tensor: Tensor) -> bool:
        """Whether a B of several parameters is zero outside of their blocks."""
        return torch.equal(self.pack(self.unpack(tensor)), tensor)

    def _views(self, tensor: Tensor) -> Sequence[Tensor]:
        shapes = [(shape[0], *tensor.shape[1:]) for shape in self.shapes]
        kind = "bias" if tensor.dim() == 1 else "weight"
        return self.arrangement.views(tensor, shapes, kind, self.config)

    def _columns(self, number: int) -> slice:
        return slice(number * self.rank, (number + 1) * self.rank)


@lru_cache(maxsize=16)
def adapter_tensors(family: HFFamily, config: ReaLModelConfig) -> tuple[AdapterTensor, ...]:
    """The tensors of the file of an adapter, in the order of the checkpoint, with the scalar head of a critic."""
    lora = config.lora
    assert lora is not None
    found = []
    for module in _adapted(family, config):
        mapping, n = module.mapping, len(module.paths)
        shapes = mapping.shapes  # [out, in] each
        n_out, n_in = sum(shape[0] for shape in shapes), shapes[0][1]
        kinds: list[tuple[str, str, list[Shape], Shape]] = [
            (LORA_A, "lora_A.weight", [(lora.rank, n_in)] * n, (n * lora.rank, n_in)),
            (LORA_B, "lora_B.weight", [(shape[0], lora.rank) for shape in shapes], (n_out, n * lora.rank)),
        ]
        if lora.dora:
            kinds.append((LORA_MAGNITUDE, "lora_magnitude_vector", [shape[:1] for shape in shapes], (n_out,)))
        for own_name, peft_name, parts, whole in kinds:
            parameters = tuple(f"{module_of(name)}.{own_name}" for name in mapping.parameters)
            name = f"{PEFT_PREFIX}{module.name}.{peft_name}"
            found.append(
                AdapterTensor(name, parameters, tuple(parts), whole, module.of_outputs, config.base, lora.rank)
            )
    if config.is_critic:
        head = _head(family, config)
        found.append(
            AdapterTensor(
                PEFT_PREFIX + head.hf_names[0], head.parameters, head.shapes, head.hf_shape, Same(), config.base, 0
            )
        )
    return tuple(found)


def _head(family: HFFamily, config: ReaLModelConfig) -> WeightMapping:
    """The mapping of a critic's scalar head."""
    name = head_weight_name(config)
    return next(mapping for mapping in weight_mappings(family, config) if name in mapping.parameters)


def _adapted(family: HFFamily, config: ReaLModelConfig) -> list[LinearModule]:
    """The modules whose layers have adapters.

    Raises:
        ConfigError: only some of the layers that share a tensor have one.
    """
    assert config.lora is not None
    targets = set(config.lora.targets)
    found = [module for module in linear_modules(family, config) if targets & set(module.paths)]
    for module in found:
        if not targets.issuperset(module.paths):
            raise ConfigError(f"'{module.name}' holds {quoted(module.paths)} together; give adapters to all or to none")
    return found


def adapter_config(family: HFFamily, config: ReaLModelConfig, base: str | None) -> dict[str, Any]:
    """The `adapter_config.json` of a model's adapter; `base` is the folder or the hub id of its base model."""
    lora = config.lora
    assert lora is not None
    modules = _adapted(family, config)
    names = {module.name_in_block: module for module in modules}
    others = {module.name_in_block for module in linear_modules(family, config)} - names.keys()
    short = {name: _shortest(name, others) for name in names}
    parts = {short[name]: len(module.paths) for name, module in names.items() if len(module.paths) > 1}
    return {
        "alpha_pattern": {name: _whole(lora.alpha * (math.sqrt(n) if lora.rslora else n)) for name, n in parts.items()},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": any(module.is_transposed for module in modules),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "modules_to_save": [module_of(_head(family, config).hf_names[0])] if config.is_critic else None,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {name: n * lora.rank for name, n in parts.items()},
        "target_modules": list(dict.fromkeys(short.values())),
        "task_type": "SEQ_CLS" if config.is_critic else "CAUSAL_LM",
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    }


def _shortest(name: str, others: set[str]) -> str:
    """The shortest end of a module's name that none of the others has."""
    parts = name.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next((end for end in ends if not any(_ends_with(other, end) for other in others)), name)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Raises:
        CheckpointError: it is missing, no JSON object, not LoRA, or asks for what adapters here cannot do; names it.
    """
    file = folder / ADAPTER_CONFIG_NAME
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no {ADAPTER_CONFIG_NAME}: it is not the folder of an adapter, as PEFT and reallm save it"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(raw).__name__}")
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{file}: peft_type={raw.get('peft_type')!r}; only LORA, with or without DoRA, can be read"
        )
    init = str(raw.get("init_lora_weights")).lower()
    if init.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{file}: init_lora_weights={raw['init_lora_weights']!r} has changed the base model as well; convert it "
            "with peft (path_initial_model_for_weight_conversion of save_pretrained)"
        )
    if raw.get("bias", "none") != "none":
        raise CheckpointError(f"{file}: bias={raw['bias']!r}; only adapters that leave biases alone can be read")
    unsupported = {key: value for key, value in raw.items() if key not in _SUPPORTED_KEYS and value}
    if unsupported:
        key, value = next(iter(unsupported.items()))
        raise CheckpointError(f"{file}: {key}={value!r} is not supported; merge the adapter with peft first")
    return raw


def lora_from_peft(
    family: HFFamily, config: ReaLModelConfig, raw: Mapping[str, Any], shapes: Mapping[str, Shape], source: Path
) -> LoRAConfig:
    """The adapters that the files of a folder hold.

    Args:
        family: family of the base model.
        config: its configuration.
        raw: the content of `adapter_config.json`.
        shapes: the tensors of the adapter's file.
        source: the folder, for errors.

    Raises:
        CheckpointError: they belong to another model, are of several ranks or scalings, or on some blocks alone.
    """
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    modules = linear_modules(family, config)
    present = {name.removeprefix(PEFT_PREFIX).partition(".lora_A.")[0] for name in shapes if ".lora_A." in name}
    if foreign := sorted(present - {module.name for module in modules}):
        raise CheckpointError(
            f"{source}: the base model has no linear layer {quoted(foreign, 3)} in its blocks; the adapter belongs to "
            "another model, or adapts layers that cannot have adapters here"
        )
    adapted = [module for module in modules if module.name in present]
    targets = dict.fromkeys(path for module in adapted for path in module.paths)
    if lacking := [one.name for one in modules if one.name not in present and targets.keys() & set(one.paths)]:
        raise CheckpointError(f"{source}: some blocks have an adapter that others lack, such as {quoted(lacking, 1)}")
    try:
        lora = LoRAConfig(
            rank=rank,  # type: ignore[arg-type]  # checked there
            alpha=float(alpha),  # type: ignore[arg-type]
            targets=tuple(targets),
            dropout=float(raw.get("lora_dropout") or 0.0),
            rslora=bool(raw.get("use_rslora")),
            dora=bool(raw.get("use_dora")),
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source / ADAPTER_CONFIG_NAME}: {error}") from error
    for key in raw.get("alpha_pattern") or {}:
        if not any(_ends_with(module.name, key) for module in modules):
            raise CheckpointError(
                f"{source / ADAPTER_CONFIG_NAME}: alpha_pattern has '{key}', which is not the name of a linear layer"
            )
    for module in adapted:
        _check_scaling(module, lora, raw, shapes[f"{PEFT_PREFIX}{module.name}.lora_A.weight"][0], source)
    return lora


def _check_scaling(module: LinearModule, lora: LoRAConfig, raw: Mapping[str, Any], rank: int, source: Path) -> None:
    """Raise CheckpointError unless a module's adapter has the rank and the scaling of the others."""
    alpha = _of_pattern(raw.get("alpha_pattern") or {}, module.name, lora.alpha)
    scaling = alpha / (math.sqrt(rank) if lora.rslora else rank)
    if rank not in (lora.rank, len(module.paths) * lora.rank) or not math.isclose(scaling, lora.scaling):
        raise CheckpointError(
            f"{source}: the adapter of '{module.name}' has rank {rank} and alpha {alpha:g}, others have {lora.rank} "
            f"and {lora.alpha:g}; adapters of one rank and alpha can be read"
        )


def _of_pattern(pattern: Mapping[str, float], name: str, default: float) -> float:
    """The value for a module in an `alpha_pattern`, whose keys are ends of names."""
    return next((value for key, value in pattern.items() if _ends_with(name, key)), default)
