"""Other values for the keys of a `config.json`, such as other checkpoints of the family may have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from reallm.hf.tables.layer_fields import FULL, SLIDING

Raw = Mapping[str, Any]

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu", "silu", "relu2")
CHUNKED = "chunked_attention"
POSITIONS = 16
"""Pretraining context length for scaled RoPE; the longest compared sequence has 40 tokens."""

ROPES: tuple[Mapping[str, Any], ...] = (
    {"rope_type": "default", "rope_theta": 300.0},
    {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "original_max_position_embeddings": POSITIONS,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": POSITIONS},
    {
        "rope_type": "yarn",
        "rope_theta": 50.0,
        "factor": 4.0,
        "original_max_position_embeddings": POSITIONS,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "attention_factor": 1.25,
    },
)

Change = Mapping[str, Any]
"""Changed keys of a `config.json`."""


def changes(raw: Raw, key: str, positions_key: str | None) -> Iterator[Change]:
    """Yields changes that give a key other values. Some need a shorter context length to have an effect.

    Args:
        raw: the configuration that is changed.
        key: a key that transformers' class reads.
        positions_key: the key of the context length; None if there is none.
    """
    value = raw.get(key)
    if "rope" in key and (isinstance(value, Mapping) or key == "rope_scaling"):
        yield from _ropes(raw, key, positions_key)
    elif key == "layer_types":
        yield from ({key: types} for types in _arranged([FULL, SLIDING, *(value or [])], len(value or [])))
    else:
        also = switched_on(raw, key)
        if value is not None:
            yield {key: None}
        yield from ({**also, key: other} for other in _others(raw, key, value) if other != value)


def switched_on(raw: Raw, key: str) -> Change:
    """Changes of other keys without which a key has no effect."""
    if "router" in key and key != "output_router_logits" and "output_router_logits" in raw:
        return {"output_router_logits": True}  # transformers adds the router loss only if it returns router logits
    if "window" in key and key != "use_sliding_window" and "use_sliding_window" in raw:
        window = {} if key == "sliding_window" or raw.get("sliding_window") else {"sliding_window": 3}
        return {"use_sliding_window": True, **window}
    return {}


def _others(raw: Raw, key: str, value: Any) -> Iterator[Any]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        yield from ACTIVATIONS if value in (*ACTIVATIONS, "gelu_fast", "tanh", "swish") else ()
    elif key == "vocab_size":
        yield 89
    elif "position" in key and isinstance(value, int):
        yield 48
    elif isinstance(value, int):
        yield from (value + 1, value * 2, value // 2) if value else (1, 2)
    elif isinstance(value, float):
        yield from (value * 4,) if 0.0 < value < 0.01 else (value * 1.5 if value else 0.25,)
        yield 0.05 if 0.0 < value < 0.01 else 0.3
    elif isinstance(value, list) and len(value) > 1 and _are_flags(value):
        yield from _arranged([type(value[0])(0), type(value[0])(1)], len(value))
    elif isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        yield [value[0] + 1, *value[1:]]
        yield value[:1]
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        yield from _arranged(value, len(value))
    elif isinstance(value, list) and not value:
        yield [0]
        yield [1]
    elif value is None:
        yield from _from_nothing(raw, key)


def _from_nothing(raw: Raw, key: str) -> Iterator[Any]:
    """Values for a key that is None, guessed by its name, since transformers' classes do not always declare types."""
    if "window" in key:
        yield from (3, 9)
    elif "softcap" in key or "clip" in key or "scal" in key or "multiplier" in key:
        yield from (1.5, 20.0)
    elif "partial" in key:
        yield 0.5
    else:
        yield from (True, 24, 2)


def _are_flags(values: list[Any]) -> bool:
    return all(isinstance(value, int) and value in (0, 1) for value in values)


def _arranged(values: list[Any], n_layers: int) -> Iterator[list[Any]]:
    """Lists with an entry per block: each value alone, and each two in turn."""
    kinds = sorted({*values} - {CHUNKED})
    for kind in kinds:
        yield [kind] * n_layers
    for one, other in itertools.permutations(kinds, 2):
        yield ([one, other] * n_layers)[:n_layers]


def _ropes(raw: Raw, key: str, positions_key: str | None) -> Iterator[Change]:
    """Changes to all kinds of RoPE, in the present or the older spelling."""
    value = raw.get(key) or {}
    layer_types = [kind for kind, item in value.items() if isinstance(item, Mapping)]
    kept = {name: value[name] for name in ("partial_rotary_factor",) if name in value}
    for parameters in ROPES:
        short = {} if positions_key is None or parameters["rope_type"] != "dynamic" else {positions_key: POSITIONS}
        if key == "rope_scaling":
            scaling = {name: item for name, item in parameters.items() if name != "rope_theta"}
            yield {"rope_parameters": None, "rope_theta": parameters["rope_theta"], key: scaling, **short}
        elif layer_types:
            yield from ({key: {**value, kind: {**kept, **parameters}}, **short} for kind in layer_types)
        else:
            yield {key: {**kept, **parameters}, **short}
    if "partial_rotary_factor" in value:
        yield {key: {**value, "partial_rotary_factor": 0.5}}
        yield {key: {**value, "partial_rotary_factor": 0.25}}
