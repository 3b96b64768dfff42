"""`adapter_config.json` in PEFT's format: written, and read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from reallm.errors import CheckpointError, ConfigError, cut, quoted
from reallm.foreign_files import read_json_object, shown
from reallm.hf.conversion.adapter_modules import (
    AdaptableModule,
    adaptable_modules,
    adapted_modules,
    ends_with,
    names_in_file,
)
from reallm.hf.conversion.adapter_tensors import PEFT_PREFIX, critic_head
from reallm.hf.family import HFFamily
from reallm.hf.file_names import ADAPTER_CONFIG_NAME
from reallm.model.config import ReaLModelConfig
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameter_names import module_of
from reallm.model.sharding import Shape

_SUPPORTED_KEYS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
"""Keys of `adapter_config.json` that are read, or do not change what a saved adapter computes."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that change the weights of the base model too."""


def adapter_config(family: HFFamily, config: ReaLModelConfig, base: str | None) -> dict[str, Any]:
    """The `adapter_config.json` of a model's adapter; `base` is the folder or the hub id of its base model.

    Raises:
        ConfigError: PEFT cannot have such an adapter of this model; says why.
    """
    lora = config.lora
    assert lora is not None
    modules = adapted_modules(family, config, lora.targets)
    names = {module.name_in_block: module for module in modules}
    all_modules = adaptable_modules(family, config)
    others = {module.name_in_block for module in all_modules} - names.keys()
    short = {name: _shortest(name, others) for name in names}
    parts = {short[name]: len(module.paths) for name, module in names.items() if len(module.paths) > 1}
    is_parameter = _by_parameter(all_modules)
    by_name = {short[name] for name, module in names.items() if not is_parameter(module)}
    by_parameter = {
        short[name] if module.is_experts else f"{short[name]}.weight"
        for name, module in names.items()
        if is_parameter(module)
    }
    if by_parameter and lora.dora:
        raise ConfigError(
            f"dora=true does not work with {quoted(sorted(by_parameter), 2)} of a model with experts, in PEFT neither; "
            "name other layers in targets"
        )
    return {
        "alpha_pattern": {name: _whole(lora.alpha * (math.sqrt(n) if lora.rslora else n)) for name, n in parts.items()},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": any(module.is_transposed for module in modules),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": 0.0 if by_parameter else lora.dropout,  # PEFT has none for parameters, and it is for training
        "modules_to_save": [module_of(critic_head(family, config).hf_names[0])] if config.is_critic else None,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {name: n * lora.rank for name, n in parts.items()},
        "target_modules": [name for name in dict.fromkeys(short.values()) if name in by_name],
        **({"target_parameters": sorted(by_parameter)} if by_parameter else {}),
        "task_type": "SEQ_CLS" if config.is_critic else "CAUSAL_LM",
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    }


def _by_parameter(modules: Iterable[AdaptableModule]) -> Callable[[AdaptableModule], bool]:
    """Whether PEFT adapts a module by its parameter's name.

    Names of modules that end like one of an expert or a router, such as `shared_experts.up_proj`, mean experts to PEFT
    (`_convert_peft_config_moe`, as of 0.21), so that their modules can only be named by their weights.
    """
    leaves = {leaf for module in modules if module.is_experts for leaf in module.names_in_checkpoint}
    leaves |= {module.name.rpartition(".")[2] for module in modules if module.is_router and leaves}
    return lambda module: module.is_experts or module.is_router or module.name.rpartition(".")[2] in leaves


def _shortest(name: str, others: set[str]) -> str:
    """The shortest end of a module's name that none of the others has."""
    parts = name.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next((end for end in ends if not any(ends_with(other, end) for other in others)), name)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Raises:
        CheckpointError: it is missing, no JSON object, not LoRA, or asks for what adapters here cannot do; names it.
    """
    file = folder / ADAPTER_CONFIG_NAME
    if not file.exists():
        raise CheckpointError(
            f"{folder} holds no {ADAPTER_CONFIG_NAME}: it is not the folder of an adapter, as PEFT and reallm save it"
        )
    raw = read_json_object(file)
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{file}: peft_type={shown(raw.get('peft_type'))}; only LORA, with or without DoRA, can be read"
        )
    init = str(raw.get("init_lora_weights")).lower()
    if init.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{file}: init_lora_weights={shown(raw['init_lora_weights'])} has changed the base model as well; convert "
            "it with peft (path_initial_model_for_weight_conversion of save_pretrained)"
        )
    if raw.get("bias", "none") != "none":
        raise CheckpointError(f"{file}: bias={shown(raw['bias'])}; only adapters that leave biases alone can be read")
    unsupported = {key: value for key, value in raw.items() if key not in _SUPPORTED_KEYS and value}
    if unsupported:
        key, value = next(iter(unsupported.items()))
        what = f"{cut(key, 60)}={shown(value)}"
        raise CheckpointError(f"{file}: {what} is not supported; merge the adapter with peft first")
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
    parameters = {name.rpartition(".")[2] for name in raw.get("target_parameters") or ()}
    modules = [
        module
        for module in adaptable_modules(family, config)
        if not module.is_experts or module.name.rpartition(".")[2] in parameters
    ]
    by_name = names_in_file(modules)
    present = {name.removeprefix(PEFT_PREFIX).partition(".lora_A.")[0] for name in shapes if ".lora_A." in name}
    if foreign := sorted(present - by_name.keys()):
        raise CheckpointError(
            f"{source}: the base model has no linear layer {quoted(foreign, 3)} in its blocks; the adapter belongs to "
            "another model, or adapts layers that cannot have adapters here"
        )
    adapted = {name: module for name, module in by_name.items() if name in present}
    targets = dict.fromkeys(path for module in adapted.values() for path in module.paths)
    if lacking := [one.name for name, one in by_name.items() if name not in present and targets.keys() & {*one.paths}]:
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
    except ConfigError as error:
        raise CheckpointError(f"{source / ADAPTER_CONFIG_NAME}: {error}") from error
    for key in raw.get("alpha_pattern") or {}:
        if not any(ends_with(module.name, key) for module in modules):
            raise CheckpointError(
                f"{source / ADAPTER_CONFIG_NAME}: alpha_pattern has '{key}', which is not the name of a linear layer"
            )
    for name, module in adapted.items():
        rank = shapes[f"{PEFT_PREFIX}{name}.lora_A.weight"][0] // (module.shapes[0][0] if module.is_experts else 1)
        _check_scaling(module, lora, raw, rank, source)
    return lora


def _check_scaling(module: AdaptableModule, lora: LoRAConfig, raw: Mapping[str, Any], rank: int, source: Path) -> None:
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
    return next((value for key, value in pattern.items() if ends_with(name, key)), default)
