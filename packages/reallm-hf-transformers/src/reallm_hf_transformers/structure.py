"""The parts of a causal language model of transformers: its layers, what is around them, and their parameters.

Everything is found by looking at a model on the meta device, which has no weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from reallm.errors import ConfigError, one_line, quoted
from reallm.hf.conversion.transformers_io import checkpoint_state, obstacle_to_family, transformers_config
from reallm.model.config import ReaLModelConfig
from reallm_hf_transformers import attention, experts

LAYER = "layer"
"""Our name of transformers' layer within a block: `layers.3.layer.mlp.up_proj.weight`."""
CONFIG = "config"
"""The entry of `ReaLModelConfig.extra` with the content of `config.json`."""

N_LAYERS, VOCAB_SIZE = "num_hidden_layers", "vocab_size"
"""transformers' names of sizes that other configurations of a model may change."""
WITHOUT_EFFECT = frozenset({"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"})
"""Keys of `config.json` that do not belong to the architecture."""


def model_class(model_type: str) -> type[PreTrainedModel]:
    """The class of causal language models of a model type.

    Raises:
        ConfigError: transformers has none, or its layers cannot be called with packed sequences; says why.
    """
    obstacle = obstacle_to_family(model_type)
    if obstacle is None:
        raise ConfigError("transformers does not know it, and code of checkpoints is never run")
    if obstacle:
        raise ConfigError(obstacle)
    name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    found: type[PreTrainedModel] = getattr(transformers, name)
    if not found._supports_attention_backend:
        raise ConfigError(
            f"the layers of {name} do not call attention through transformers' attention interface, so that packed "
            "sequences would see each other"
        )
    return found


def hf_config(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' configuration of a `config.json`, for layers that call our attention.

    Raises:
        ConfigError: transformers refuses it, or has no causal language model of it.
    """
    model_class(str(raw.get("model_type")))
    attention.register()
    experts.register()
    try:
        found = transformers_config({key: value for key, value in raw.items() if key not in WITHOUT_EFFECT})
    except Exception as error:  # transformers' own checks raise many kinds
        raise ConfigError(f"transformers refuses its config.json ({one_line(error)})") from error
    if kinds := _rope_types(found.to_dict()) & {"dynamic", "longrope"}:
        raise ConfigError(f"with rope_type={min(kinds)}, sequences depend on the longest of those computed together")
    found._attn_implementation = attention.NAME
    return found


def _rope_types(value: Any) -> set[str]:
    """The values of `rope_type` in a configuration, at any depth."""
    if not isinstance(value, dict):
        return set()
    own = {value["rope_type"]} if isinstance(value.get("rope_type"), str) else set()
    return own.union(*map(_rope_types, value.values()))


def key_of(model_type: str, attribute: str) -> str:
    """The key of `config.json` that sets an attribute of transformers' configuration: `n_layer`."""
    return str(CONFIG_MAPPING[model_type].attribute_map.get(attribute, attribute))


def thawed(value: Any) -> Any:
    """A value of `ReaLModelConfig.extra` with dicts and lists, as `config.json` has them."""
    if isinstance(value, Mapping):
        return {key: thawed(each) for key, each in value.items()}
    return [thawed(each) for each in value] if isinstance(value, tuple) else value


Names = tuple[str, ...]
"""The names in checkpoints of a tensor in memory. A name with `{each}` stands for one tensor for each item along dim 0,
such as an expert; several are parts along dim 1 of the tensor in memory, such as gate and up."""


def part_names(name: str, n: int) -> list[str]:
    """Our names of the parameters that hold a tensor of which checkpoints have `n` parts."""
    return [name] if n == 1 else [f"{name}_{number}" for number in range(n)]


@dataclass(frozen=True, eq=False)
class Structure:
    """A causal language model of transformers on the meta device, and where its parts are."""

    model: PreTrainedModel
    base: nn.Module
    """The model without the output head."""
    layers_name: str
    """Name of the list of layers in `base`."""
    norm_name: str | None
    """Name of the last norm in `base`; None if it has none."""
    names: Mapping[str, Names]
    """Names of parameters and buffers in memory -> in checkpoints."""

    @property
    def layers(self) -> nn.ModuleList:
        """The layers."""
        found = getattr(self.base, self.layers_name)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def embedding(self) -> nn.Module:
        """The embedding of tokens."""
        return self.base.get_input_embeddings()  # type: ignore[operator]

    def path(self, module: nn.Module) -> str:
        """The path of a module in the model: `model.layers.0`."""
        return next(path for path, each in self.model.named_modules() if each is module)

    def names_of(self, module: nn.Module) -> dict[str, Names]:
        """Names of the parameters and saved buffers of a module within it -> their names in checkpoints."""
        prefix = self.path(module)
        return {name: self.names[f"{prefix}.{name}"] for name in module.state_dict()}


def structure_of(config: PreTrainedConfig) -> Structure:
    """The structure of the model of a configuration.

    Raises:
        ConfigError: it has parts that a network of embedding, layers and head does not have; names them.
    """
    cls = model_class(config.model_type)
    with torch.device("meta"):
        model = cls._from_config(
            copy.deepcopy(config), attn_implementation=attention.NAME, experts_implementation=experts.NAME
        )
    base = model.get_decoder()
    lists = [name for name, each in base.named_children() if isinstance(each, nn.ModuleList) and _has_state(each)]
    if len(lists) != 1 or len(getattr(base, lists[0])) != config.num_hidden_layers:
        raise ConfigError(f"{type(base).__name__} is not one list of layers between an embedding and a head")
    norms = [name for name, each in base.named_children() if "norm" in type(each).__name__.lower()]
    known = {id(base), id(base.get_input_embeddings()), id(model.get_output_embeddings()), id(getattr(base, lists[0]))}
    outside = [
        name
        for name, each in (*model.named_children(), *base.named_children())
        if _has_state(each) and id(each) not in known and name not in norms
    ]
    outside += [name for name, _ in base.named_parameters(recurse=False)]
    if outside:
        raise ConfigError(f"{type(model).__name__} has {quoted(outside)} outside of its layers")
    if len(norms) > 1:
        raise ConfigError(f"{type(base).__name__} has several norms outside of its layers: {quoted(norms)}")
    return Structure(model, base, lists[0], norms[0] if norms else None, _names_in_files(model))


def _has_state(module: nn.Module) -> bool:
    return bool(module.state_dict())


def _names_in_files(model: PreTrainedModel) -> dict[str, Names]:
    """Names of a model's tensors in memory -> in checkpoints.

    Raises:
        ConfigError: checkpoints hold other tensors than the model in memory, in a way that is not understood.
    """
    return {name: _names_of(name, tensor, model) for name, tensor in model.state_dict().items()}


def _names_of(name: str, tensor: Tensor, model: PreTrainedModel) -> Names:
    in_file = checkpoint_state(model, {name: tensor})
    if len(in_file) == 1:
        ((only, stored),) = in_file.items()
        if stored.shape == tensor.shape:
            return (only,)
    # `experts.0.gate_proj.weight`, `experts.0.up_proj.weight`, ... for `experts.gate_up_proj` [X, 2F, E]
    patterns = tuple(dict.fromkeys(re.sub(r"^(.*)\.\d+\.", r"\1.{each}.", one) for one in in_file))
    n = len(patterns)
    of_item = (tensor.shape[1] // n, *tensor.shape[2:]) if tensor.dim() > 1 else ()
    if len(in_file) != n * len(tensor) or any(tuple(one.shape) != of_item for one in in_file.values()):
        raise ConfigError(f"how its checkpoints hold '{name}' is not understood")
    return patterns


@lru_cache(maxsize=8)
def structure(config: ReaLModelConfig) -> Structure:
    """The structure of a network, which all who ask for it share, and must not change."""
    raw = thawed(config.extra[CONFIG])
    layers, vocabulary = (key_of(raw["model_type"], name) for name in (N_LAYERS, VOCAB_SIZE))
    return structure_of(hf_config({**raw, layers: config.n_layers, vocabulary: config.vocab_size}))
