"""Inspects a tiny model of an architecture of transformers: its tensors, and how its norms and embedding compute.

Tensors are inspected on the meta device, computations on one real model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reallm_devkit.scaffold.names import STANDARD_KEYS

if TYPE_CHECKING:
    from torch import Tensor, nn
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
MAX_PARAMETERS = 10_000_000
"""Largest model that is built to inspect its computations; a larger one has size keys that are not in `SIZES`."""
HEAD_DIM = 16
"""Different from hidden size / number of heads, to find out whether a class reads it."""


@dataclass(frozen=True)
class TinyModel:
    """The properties of an inspected tiny model.

    Attributes:
        tensors: tensor name in its checkpoint -> shape.
        values: the boolean keys of its configuration.
        switches: boolean keys for which both values make a model -> the tensors with the other value.
        transposed: modules that store weights as [in, out].
        norm: the kind of the norm before the head, `rms` or `layer`; empty if it is neither, or there is none.
        norm_offset: what that norm adds to its weight.
        norm_eps: the epsilon of that norm; None if unknown.
        embedding_scale: the factor of the token embedding.
        interleaved: whether RoPE rotates pairs of neighbouring dims.
        head_dim: the configuration's head_dim if none is given; None if it has no such key.
        reads_head_dim: whether the shapes of projections depend on a key `head_dim`, and another value than the hidden
            size divided by the heads works.
        is_causal: whether no token sees later ones; True if unknown.
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
    is_causal: bool = True


def inspect_tiny(language_model: str, config: type[PreTrainedConfig], raw: Mapping[str, Any]) -> TinyModel | None:
    """Build and inspect a tiny model; None if the class cannot be built with small sizes.

    Args:
        language_model: the name of the model class.
        config: its configuration class.
        raw: the defaults of the configuration.
    """
    import torch

    from reallm_devkit.testing.families.reference import hf_class

    cls = hf_class(language_model)
    if cls is None:
        return None
    small = _small_values(config, raw)
    model = _meta_model(cls, config, small)
    if model is None and "head_dim" in raw:  # null by default, but required
        small["head_dim"] = SIZES["hidden_size"] // SIZES["num_attention_heads"]
        model = _meta_model(cls, config, small)
    if model is None:
        return None
    tensors = _tensor_shapes(model)
    values = {key: value for key, value in raw.items() if isinstance(value, bool)}
    switches = {
        key: _tensor_shapes(other)
        for key, value in values.items()
        if (other := _meta_model(cls, config, {**small, key: not value})) is not None
    }
    is_computed = isinstance(getattr(config, "head_dim", None), property)
    wide = None if is_computed else _meta_model(cls, config, {**small, "head_dim": HEAD_DIM})
    reads_head_dim = wide is not None and _tensor_shapes(wide) != tensors
    norm, norm_offset, norm_eps, embedding_scale, is_causal = "", 0.0, None, 1.0, True
    if sum(parameter.numel() for parameter in model.parameters()) < MAX_PARAMETERS:
        with torch.no_grad():
            real = cls(config(**small))
            norm, norm_offset, norm_eps = _inspect_norm(real)
            embedding_scale = _embedding_scale(real)
            is_causal = _is_causal(cls(config(**small)))
            if reads_head_dim:
                reads_head_dim = _logits(cls(config(**{**small, "head_dim": HEAD_DIM}))) is not None
    return TinyModel(
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
        reads_head_dim=reads_head_dim,
        is_causal=is_causal,
    )


def _small_values(config: type[PreTrainedConfig], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Small sizes under the keys of the class, and token ids within the vocabulary."""
    sizes = {key: value for key, value in EXPERT_SIZES.items() if isinstance(raw.get(key), int)}
    for key, value in SIZES.items():
        for name in (key, config.attribute_map.get(key, key), *STANDARD_KEYS[key]):
            if name in raw and not (name == "n_inner" and raw[name] is None):
                sizes[name] = value
                break
    return {**sizes, **{key: 1 for key, value in raw.items() if key.endswith("_token_id") and isinstance(value, int)}}


def _meta_model(
    cls: type[PreTrainedModel], config: type[PreTrainedConfig], values: Mapping[str, Any]
) -> PreTrainedModel | None:
    """The model on the meta device; None if it cannot be built."""
    import torch

    try:
        with torch.device("meta"):
            return cls(config(**values))
    except Exception:  # transformers raises anything for values that do not fit together
        return None


def _tensor_shapes(model: PreTrainedModel) -> dict[str, Shape]:
    from reallm.hf.conversion.transformers_io import checkpoint_state

    return {name: tuple(tensor.shape) for name, tensor in checkpoint_state(model).items()}


def _inspect_norm(model: nn.Module) -> tuple[str, float, float | None]:
    """Kind, weight offset and epsilon of the last norm, found by shifting its input and by zeroing its weight."""
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
    except (RuntimeError, TypeError):  # a norm with other inputs
        return "", 0.0, None
    if not torch.allclose(found, scaled, atol=1e-3):
        return "", 0.0, None
    kind = "layer" if torch.allclose(found, shifted, atol=1e-3) else "rms"
    return kind, 0.0 if vanishes else 1.0, getattr(norm, "eps", getattr(norm, "variance_epsilon", None))


def _embedding_scale(model: PreTrainedModel) -> float:
    import torch

    embedding = model.get_input_embeddings()
    row = embedding.get_parameter("weight")[2]  # not that of a padding token, which is zero
    return float((embedding(torch.tensor(2)) / row).median())


def _is_causal(model: PreTrainedModel) -> bool:
    before, after = _logits(model, last_token=3), _logits(model, last_token=4)
    return before is None or after is None or bool(before[:, :-1].allclose(after[:, :-1], atol=1e-5))


def _logits(model: PreTrainedModel, last_token: int = 3) -> Tensor | None:
    """Logits [1, T, V] of a few tokens; None if the model does not run."""
    import torch

    try:
        logits: Tensor = model.eval()(torch.tensor([[5, 6, 7, last_token]]), use_cache=False).logits
    except Exception:  # transformers raises anything for sizes that do not fit together
        return None
    return logits


def _is_interleaved(cls: type[PreTrainedModel]) -> bool:
    """Whether the class's `rotate_half` pairs neighbours: `[0, 1, 2, 3]` becomes `[-1, 0, -3, 2]`."""
    import torch

    rotate_half = getattr(sys.modules[cls.__module__], "rotate_half", None)
    if rotate_half is None:
        return False
    return bool(rotate_half(torch.arange(4.0)).tolist() == [-1.0, 0.0, -3.0, 2.0])
