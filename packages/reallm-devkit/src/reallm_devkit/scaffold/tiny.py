"""A tiny model of an architecture of transformers, looked at: its tensors, and what its norms and embeddings do.

It is made without memory for its parameters as often as its tensors are looked at, and once with.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reallm_devkit.scaffold.names import STANDARD_KEYS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

Shape = tuple[int, ...]

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERT_SIZES = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MOST_PARAMETERS = 10_000_000
"""Of a model that is made for what its parts do; one that is larger has sizes of other names."""
HEAD_DIM = 16
"""Other than the hidden size divided among the heads, to see whether a class listens to it."""


@dataclass(frozen=True)
class Tiny:
    """What is seen of a tiny model.

    Attributes:
        tensors: names in its checkpoints -> shapes.
        values: truth values of its configuration.
        switches: these, if both values make a model -> the tensors there are with the other one.
        transposed: modules that hold weights as [in, out].
        norm: `rms` or `layer`, of the norm before the head; empty if neither, or there is none.
        norm_offset: what that adds to its weight.
        norm_eps: of that; None if it does not say.
        embedding_scale: what the embedding of tokens multiplies by.
        interleaved: whether RoPE rotates neighbours.
        head_dim: what the configuration makes of the key where none is given; None if it has no such key.
        reads_head_dim: whether the projections follow a key `head_dim`.
    """

    tensors: Mapping[str, Shape]
    values: Mapping[str, bool]
    switches: Mapping[str, Mapping[str, Shape]]
    transposed: frozenset[str]
    norm: str
    norm_offset: float
    norm_eps: float | None
    embedding_scale: float
    interleaved: bool
    head_dim: int | None
    reads_head_dim: bool


def tiny_of(language_model: str, config: type[PreTrainedConfig], raw: Mapping[str, Any]) -> Tiny | None:
    """A tiny model of a class; None if it does not let itself be made with small sizes.

    Args:
        language_model: name of the class.
        config: the class of its configuration.
        raw: what that states by default.
    """
    import torch

    from reallm_devkit.testing.families.reference import hf_class

    cls = hf_class(language_model)
    if cls is None:
        return None
    small = _small(config, raw)
    model = _model(cls, config, small)
    if model is None and "head_dim" in raw:  # null by default, and yet needed
        small["head_dim"] = SIZES["hidden_size"] // SIZES["num_attention_heads"]
        model = _model(cls, config, small)
    if model is None:
        return None
    tensors = _tensors(model)
    values = {key: value for key, value in raw.items() if isinstance(value, bool)}
    switches = {
        key: _tensors(other)
        for key, value in values.items()
        if (other := _model(cls, config, {**small, key: not value})) is not None
    }
    is_computed = isinstance(getattr(config, "head_dim", None), property)
    wide = None if is_computed else _model(cls, config, {**small, "head_dim": HEAD_DIM})
    norm, norm_offset, norm_eps, embedding_scale = "", 0.0, None, 1.0
    if sum(parameter.numel() for parameter in model.parameters()) < MOST_PARAMETERS:
        with torch.no_grad():
            real = cls(config(**small))
            norm, norm_offset, norm_eps = _norm_facts(real)
            embedding_scale = _embedding_scale(real)
    return Tiny(
        tensors=tensors,
        values=values,
        switches=switches,
        transposed=frozenset(name for name, part in model.named_modules() if type(part).__name__ == "Conv1D"),
        norm=norm,
        norm_offset=norm_offset,
        norm_eps=norm_eps,
        embedding_scale=embedding_scale,
        interleaved=_is_interleaved(cls),
        head_dim=getattr(model.config, "head_dim", None),
        reads_head_dim=wide is not None and _tensors(wide) != tensors,
    )


def _small(config: type[PreTrainedConfig], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Small sizes by the keys of the class, and token ids within the vocabulary."""
    sizes = {key: value for key, value in EXPERT_SIZES.items() if isinstance(raw.get(key), int)}
    for key, value in SIZES.items():
        for own in (key, config.attribute_map.get(key, key), *STANDARD_KEYS[key]):
            if own in raw and not (own == "n_inner" and raw[own] is None):
                sizes[own] = value
                break
    return {**sizes, **{key: 1 for key, value in raw.items() if key.endswith("_token_id") and isinstance(value, int)}}


def _model(
    cls: type[PreTrainedModel], config: type[PreTrainedConfig], values: Mapping[str, Any]
) -> PreTrainedModel | None:
    """A model that no memory is taken for; None if there can be none."""
    import torch

    try:
        with torch.device("meta"):
            return cls(config(**values))
    except Exception:  # whatever transformers does about sizes and switches that do not go together
        return None


def _tensors(model: PreTrainedModel) -> dict[str, Shape]:
    from reallm.hf.conversion.transformers_io import checkpoint_state

    return {name: tuple(tensor.shape) for name, tensor in checkpoint_state(model).items()}


def _norm_facts(model: nn.Module) -> tuple[str, float, float | None]:
    """Kind, offset of the weight and epsilon of the last norm: does a shift matter, does it vanish with its weight?"""
    import torch

    norms = [part for name, part in model.named_modules() if "Norm" in type(part).__name__ and ".0." not in name]
    if not norms:
        return "", 0.0, None
    norm = norms[-1]
    x = torch.linspace(-1.0, 2.0, SIZES["hidden_size"])
    try:
        found, shifted, scaled = norm(x), norm(x + 1), norm(x * 4)
        for parameter in norm.parameters():
            parameter.zero_()
        vanishes = not bool(norm(x).any()) or not any(True for _ in norm.parameters())
    except (RuntimeError, TypeError):  # one with other inputs
        return "", 0.0, None
    if not torch.allclose(found, scaled, atol=1e-3):
        return "", 0.0, None
    kind = "layer" if torch.allclose(found, shifted, atol=1e-3) else "rms"
    return kind, 0.0 if vanishes else 1.0, getattr(norm, "eps", getattr(norm, "variance_epsilon", None))


def _embedding_scale(model: PreTrainedModel) -> float:
    import torch

    embedding = model.get_input_embeddings()
    row = embedding.get_parameter("weight")[2]  # that of a padding token is zero
    return float((embedding(torch.tensor(2)) / row).median())


def _is_interleaved(cls: type[PreTrainedModel]) -> bool:
    """Whether the class's `rotate_half` takes neighbours together: `[0, 1, 2, 3]` becomes `[-1, 0, -3, 2]`."""
    import torch

    rotate_half = getattr(sys.modules[cls.__module__], "rotate_half", None)
    if rotate_half is None:
        return False
    return bool(rotate_half(torch.arange(4.0)).tolist() == [-1.0, 0.0, -3.0, 2.0])
