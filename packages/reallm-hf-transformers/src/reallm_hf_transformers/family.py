"""The family of a `config.json` whose network consists of transformers' layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

from reallm.errors import CheckpointError, ConfigError
from reallm.hf.family import HFFamily
from reallm.hf.tables.config import ConfigTable
from reallm.hf.tables.fields import Computed, Key
from reallm.hf.tables.weights import WeightTable
from reallm.model.config import Extra, ReaLModelConfig
from reallm.notices import notify_once
from reallm_hf_transformers.structure import (
    CONFIG,
    LAYER,
    N_LAYERS,
    VOCAB_SIZE,
    WITHOUT_EFFECT,
    Structure,
    hf_config,
    key_of,
    part_names,
    structure_of,
    thawed,
)
from reallm_hf_transformers.trial import check_network

BLOCK, NORM = "reallm_hf_transformers.block:TransformersBlock", "reallm_hf_transformers.block:FinalNorm"
_LOGIT_FACTORS, _LOGIT_DIVISORS = ("logit_scale", "lm_head_multiplier"), ("logits_scaling",)
_LOGIT_CAPS = ("final_logit_softcapping",)
"""Keys that change logits; with a meaning that differs, a model fails the comparison with transformers'."""


def family_of(raw: Mapping[str, Any], source: str | Path = "config.json") -> HFFamily:
    """The family of a `config.json`, whose network is first compared with transformers' in a small size.

    Raises:
        CheckpointError: transformers' layers cannot compute it on packed sequences; names `source` and says why.
    """
    try:
        family = _checked_family(json.dumps(raw, sort_keys=True))
    except ConfigError as error:
        what = f"model_type '{raw.get('model_type')}'"
        raise CheckpointError(f"{source}: model.implementation=transformers cannot run {what}: {error}") from error
    notify_once(f"{family.description}: slow, not certified, without tensor and pipeline parallelism")
    return family


@lru_cache(maxsize=16)
def _checked_family(raw: str) -> HFFamily:
    content = json.loads(raw)
    family = unchecked_family(content)
    check_network(content, unchecked_family)
    return family


def unchecked_family(raw: Mapping[str, Any]) -> HFFamily:
    """The family of a `config.json`; its network may compute something else than transformers'.

    Raises:
        ConfigError: the model has other parts than embedding, layers and head, or its attention cannot be replaced.
    """
    parts = structure_of(hf_config(raw))
    model_type, architecture = parts.model.config.model_type, type(parts.model).__name__
    critic = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(model_type)
    return HFFamily(
        names=(model_type,),
        model_type=model_type,
        architectures=(architecture,),
        critic_architectures=() if critic is None else (critic,),
        config=_config_table(raw, parts),
        weights=_weight_table(parts),
        description=f"{architecture} in transformers' own layers",
    )


def _config_table(raw: Mapping[str, Any], parts: Structure) -> ConfigTable:
    config = parts.model.config
    sizes = {
        "n_layers": (key_of(config.model_type, N_LAYERS), config.num_hidden_layers),
        "vocab_size": (key_of(config.model_type, VOCAB_SIZE), config.vocab_size),
    }
    keys = tuple(key for key in raw if key not in {key for key, _ in sizes.values()})
    fields = _fields(raw, parts, keys)
    return ConfigTable(
        rows=(
            *(Key(key, int, field, default=value) for field, (key, value) in sizes.items()),
            Computed(keys, tuple(fields), lambda raw, known: fields, partial(_write, keys)),
        ),
        constants={"rope": None},  # it is in the layers
    )


def _write(keys: tuple[str, ...], config: ReaLModelConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    kept = thawed(config.extra[CONFIG])
    return {key: base.get(key) if key in WITHOUT_EFFECT else kept[key] for key in keys}


def _fields(raw: Mapping[str, Any], parts: Structure, keys: tuple[str, ...]) -> dict[str, Any]:
    """The fields of `ReaLModelConfig` that follow from all keys but those of sizes."""
    config = parts.model.config
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    content = {key: raw[key] for key in keys if key not in WITHOUT_EFFECT}
    layer_types = config.to_dict().get("layer_types")
    if layer_types:
        content["layer_types"] = list(layer_types)  # also where they follow from another key
    head = parts.model.get_output_embeddings()
    return {
        "hidden_size": config.hidden_size,
        "n_q_heads": n_heads,
        "n_kv_heads": n_kv_heads if n_heads % n_kv_heads == 0 else n_heads,
        "head_dim": getattr(config, "head_dim", None) or max(1, config.hidden_size // n_heads),
        "intermediate_size": getattr(config, "intermediate_size", None) or config.hidden_size,
        "max_positions": getattr(config, "max_position_embeddings", None) or 1,
        "block": BLOCK,
        "extra": Extra({CONFIG: content}),
        "norm": "rms" if parts.norm_name is None else NORM,
        "final_norm": parts.norm_name is not None,
        "tied_embeddings": bool(config.tie_word_embeddings),
        "head_bias": getattr(head, "bias", None) is not None,
        "embedding_multiplier": float(getattr(parts.embedding, "scalar_embed_scale", 1.0)),
        "logit_multiplier": _logit_multiplier(config),
        "logit_softcap": next((cap for key in _LOGIT_CAPS if (cap := getattr(config, key, None))), None),
        "init_std": getattr(config, "initializer_range", None) or 0.02,
    }


def _logit_multiplier(config: PreTrainedConfig) -> float:
    factor = 1.0
    for key in _LOGIT_FACTORS:
        factor *= getattr(config, key, None) or 1.0
    for key in _LOGIT_DIVISORS:
        factor /= getattr(config, key, None) or 1.0
    return factor


def _weight_table(parts: Structure) -> WeightTable:
    block: dict[Any, str] = {}
    for number, layer in enumerate(parts.layers):
        # `model.layers.3.mlp.up_proj` -> `model.layers.{}.mlp.up_proj`
        block |= {ours: theirs.replace(f".{number}.", ".{}.", 1) for ours, theirs in _entries(parts, layer, LAYER)}
    output = parts.model.get_output_embeddings()
    assert isinstance(output, nn.Module)
    head: dict[Any, str] = dict(_entries(parts, output, "out"))
    if parts.norm_name is not None:
        head |= dict(_entries(parts, getattr(parts.base, parts.norm_name), "norm.norm"))
    return WeightTable(
        embedding=dict(_entries(parts, parts.embedding, "tokens")),
        block=block,
        head=head,
        critic_head={"out": "score"},
        ignored=("*.rotary_emb.inv_freq",),
    )


def _entries(parts: Structure, module: nn.Module, path: str) -> Iterator[tuple[str, str]]:
    """The rows of a weight table for a module of transformers that has a path in our layer.

    Weights and biases are rows of their modules, all else has a row of its own.
    """
    for name, in_file in parts.names_of(module).items():
        for ours, theirs in zip(part_names(f"{path}.{name}", len(in_file)), in_file, strict=True):
            owner, _, kind = ours.rpartition(".")
            their_owner, _, their_kind = theirs.rpartition(".")
            is_module = kind == their_kind and kind in ("weight", "bias")
            yield (owner, their_owner) if is_module else (ours, theirs)
