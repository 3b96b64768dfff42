"""A comparison of a network with transformers' model of the same classes, in a small size.

Two sequences are computed packed and, with a cache, in two parts; transformers computes each by itself. Layers that mix
packed sequences, masks that our attention does not have, or parts that a network of embedding, layers and head lacks
show as a difference.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from reallm.errors import ConfigError, counted, one_line
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.conversion.state_dict import state_dict_from_hf
from reallm.hf.conversion.transformers_io import checkpoint_state
from reallm.hf.family import HFFamily
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer
from reallm_hf_transformers.structure import WITHOUT_EFFECT, hf_config, model_class

TOLERANCE = 1e-4
"""Largest difference of logits, as a part of the largest; they are computed in float64, at least for the most part."""
_LENGTHS, _CACHED = (13, 8), (9, 3)
"""Lengths of the two sequences, and how many tokens of each are in the cache before the others are computed."""
_WINDOW = 5
_SIZES = {"vocab_size": 61, "intermediate_size": 48}
_EXPERT_SIZE = 32
_N_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def check_network(raw: Mapping[str, Any], family_of: Callable[[Mapping[str, Any]], HFFamily]) -> None:
    """Raise ConfigError unless the network of a `config.json` computes what transformers' model computes.

    Args:
        raw: content of `config.json`.
        family_of: gives the family of such content.
    """
    small = small_config(raw)
    try:
        reference, sequences, expected = _reference(small)
        family = family_of(small)
        config = config_from_hf(family, small)
        network = Transformer(config).double().eval()
        network.load_state_dict(state_dict_from_hf(family, checkpoint_state(reference), config))
        with torch.no_grad():
            found = {"packed": _packed(network, sequences), "in parts with a cache": _cached(network, sequences)}
    except ConfigError:
        raise
    except Exception as error:  # transformers' models raise any kind
        raise ConfigError(f"a small model of it fails ({one_line(error)})") from error
    for way, logits in found.items():
        difference = max(_relative(*pair) for pair in zip(logits.split(_LENGTHS), expected, strict=True))
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"in a small model, logits of sequences {way} differ from transformers' by {difference:.1e} of the "
                f"largest; {_suspects(network)}"
            )


def _suspects(network: Transformer) -> str:
    """What may make a difference, for an error."""
    without = [number - 1 for number, spec in network.cache_specs().items() if not spec]
    if without:
        return f"{counted(len(without), 'layer')} from layer {without[0]} on have no attention, and may mix sequences"
    return "it has parts that attention within each sequence, embedding, norm and head do not have"


def small_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` with the same kinds of layers, and smaller sizes."""
    content = {key: value for key, value in raw.items() if key not in WITHOUT_EFFECT}
    config_class = CONFIG_MAPPING[content["model_type"]]
    config = config_class(**{key: value for key, value in content.items() if key != "model_type"})
    whole = config.to_dict()
    n_heads, n_kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    changes: dict[str, Any] = {**_SIZES, "num_attention_heads": 2, "hidden_size": 2 * head_dim}
    if n_kv_heads is not None:
        changes["num_key_value_heads"] = 2 if n_kv_heads == n_heads else 1
    changes |= _sizes_of_experts(config, whole)
    changes |= {key: _WINDOW for key, value in whole.items() if _is_window(key, value)}
    for attribute, value in changes.items():
        key = config_class.attribute_map.get(attribute, attribute)
        if key in whole:
            content[key] = value
    return content | {key: 0 for key in _TOKEN_IDS if whole.get(key) is not None}


def _sizes_of_experts(config: PreTrainedConfig, whole: Mapping[str, Any]) -> dict[str, int]:
    """Smaller sizes and fewer experts, if there are any; every group keeps as many as are chosen of it."""
    found = {key: _EXPERT_SIZE for key in whole if key.endswith("intermediate_size") and key != "intermediate_size"}
    n_chosen, n_groups = getattr(config, "num_experts_per_tok", None) or 1, getattr(config, "n_group", None) or 1
    per_group = max(2, math.ceil(2 * n_chosen / (getattr(config, "topk_group", None) or 1)))
    for key in _N_EXPERTS:
        if type(whole.get(key)) is int:
            found[key] = min(whole[key], n_groups * per_group)
    return found


def _is_window(key: str, value: Any) -> bool:
    return type(value) is int and value > _WINDOW and ("window" in key or "chunk" in key)


def _reference(raw: Mapping[str, Any]) -> tuple[PreTrainedModel, list[Tensor], list[Tensor]]:
    """transformers' model in float64 with random weights, two sequences, and their logits."""
    generator = torch.Generator().manual_seed(0)
    config = copy.deepcopy(hf_config(raw))
    model = model_class(config.model_type)._from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.dim() > 1:  # large enough for attention that is far from even
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(noise, alpha=0.1)
        model.get_input_embeddings().weight.normal_(generator=generator)
        sequences = [torch.randint(config.vocab_size, (length,), generator=generator) for length in _LENGTHS]
        return model, sequences, [model(each[None], use_cache=False).logits[0] for each in sequences]


def _packed(network: Transformer, sequences: list[Tensor]) -> Tensor:
    return network(torch.cat(sequences), torch.tensor([0, *_LENGTHS]).cumsum(0))


def _cached(network: Transformer, sequences: list[Tensor]) -> Tensor:
    """The logits where the first tokens of both sequences are computed first, then the next one, then the others."""
    cache = network.new_cache(len(sequences), max(_LENGTHS))
    bounds = [(0, 0), _CACHED, tuple(n + 1 for n in _CACHED), _LENGTHS]
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for starts, ends in pairwise(bounds):
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        tokens = torch.cat([each[start:end] for each, start, end in zip(sequences, starts, ends, strict=True)])
        seqs = PackedSequences.from_lengths(lengths, cached_lengths=starts)
        hidden = network.forward_hidden(tokens, seqs, cache)
        for part, rows in zip(parts, network.head(hidden).split(lengths), strict=True):
            part.append(rows)
    return torch.cat([row for part in parts for row in part])


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
