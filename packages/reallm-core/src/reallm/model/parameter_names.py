"""Names of parameters: `layers.{layer}.{path}`, as in `layers.3.attn.q.weight`. Imports no torch.

Layer 0 is the embedding, layers 1..n are the blocks, layer n+1 is the head; a part of a network keeps these numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reallm.model.config import ReaLModelConfig

if TYPE_CHECKING:
    import torch

EMBEDDING_LAYER = 0
EMBEDDING_WEIGHT = "layers.0.tokens.weight"
"""The token embedding [V, E]. A tied head shares it: in a pipeline, the last stage then has a copy as well."""
LORA_A, LORA_B, LORA_MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"
"""Parameters of an adapter, in the linear layer that it adapts: `layers.3.attn.q.lora_a`."""


def layer_path(layer: int) -> str:
    """Path of a layer in the network: 3 -> `layers.3`."""
    return f"layers.{layer}"


def parameter_name(layer: int, path: str) -> str:
    """Full name of a parameter or module of a layer: `(3, "attn.q.weight")` -> `layers.3.attn.q.weight`."""
    return f"{layer_path(layer)}.{path}"


def layer_number(name: str) -> int:
    """Layer of a parameter or module: `layers.3.attn.q.weight` -> 3."""
    return int(name.split(".")[1])


def path_in_layer(name: str) -> str:
    """Name of a parameter or module within its layer: `layers.3.attn.q.weight` -> `attn.q.weight`."""
    return name.split(".", 2)[2]


def split_parameter_name(name: str) -> tuple[str, str]:
    """Split into the module and the name within it: `layers.3.attn.q.weight` -> (`layers.3.attn.q`, `weight`)."""
    module, _, own_name = name.rpartition(".")
    return module, own_name


def module_of(name: str) -> str:
    """Path of the module that has a parameter: `layers.3.attn.q.weight` -> `layers.3.attn.q`."""
    return split_parameter_name(name)[0]


def all_layers(config: ReaLModelConfig) -> range:
    """Numbers of all layers, embedding and head included."""
    return range(config.n_layers + 2)


def block_layers(config: ReaLModelConfig) -> range:
    """Numbers of the blocks."""
    return range(1, config.n_layers + 1)


def head_layer(config: ReaLModelConfig) -> int:
    """Number of the output head."""
    return config.n_layers + 1


def head_weight_name(config: ReaLModelConfig) -> str:
    """Name of the output projection: the embedding's name if the head is tied."""
    return EMBEDDING_WEIGHT if config.head_is_tied else parameter_name(head_layer(config), "out.weight")


def head_bias_name(config: ReaLModelConfig) -> str | None:
    """Name of the output projection's bias; None if it has none."""
    return parameter_name(head_layer(config), "out.bias") if config.head_has_bias else None


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return split_parameter_name(name)[1] in (LORA_A, LORA_B, LORA_MAGNITUDE)


def is_trained(name: str, config: ReaLModelConfig) -> bool:
    """Whether training changes a parameter: with adapters only theirs, and the scalar head of a critic."""
    return config.lora is None or is_adapter(name) or (config.is_critic and name == head_weight_name(config))


def adapter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of adapters of a network whose parameters have `dtype`: at least float32."""
    import torch

    return torch.promote_types(dtype, torch.float32)


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of one parameter of a network of `dtype`."""
    return adapter_dtype(dtype) if is_adapter(name) else dtype
