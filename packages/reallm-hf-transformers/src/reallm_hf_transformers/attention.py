"""Attention of transformers' layers, computed by reallm on packed sequences.

transformers' layers call an attention function by its name in the configuration (`AttentionInterface`). The one that is
registered here passes queries, keys and values to the forward pass in which the layer is called, which knows the bounds
of the sequences and the cache. It needs no mask, so transformers makes none.

Shapes: T packed tokens, H query heads, K KV heads, D head dim, W value dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from reallm.errors import ConfigError
from reallm.model.attention.functional import AttentionSpec
from reallm.model.attention.kv_cache import CacheTensor, LayerCache
from reallm.model.forward_context import ForwardContext

NAME = "reallm"
"""Name of the attention function in transformers' configurations."""
_PASS = "reallm_pass"
_HARMLESS = frozenset({"position_ids", "is_causal", "output_attentions", "use_cache", "cache_position"})
"""Arguments of attention functions that change nothing here, whatever their values."""


@dataclass
class LayerPass:
    """The forward pass in which a layer is called, which its attention modules find in an attribute."""

    context: ForwardContext | None = None
    """None: only shapes are asked for."""
    cache: LayerCache | None = None
    kept: list[tuple[CacheTensor, ...]] = field(default_factory=list)
    """Keys and values of each call of attention, as the cache would keep them, where only shapes are asked for."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """Attention of the queries [T, H, D] over keys [T, K, D] and values [T, K, W] -> [T, H, W]."""
        if self.context is None:
            self.kept.append(tuple(CacheTensor(tuple(each.shape[1:])) for each in (k, v)))
            return q.new_empty(*q.shape[:2], v.shape[-1])
        return self.context.attention(q, k, v, self.context, spec, self.cache)


def bind(layer: nn.Module) -> LayerPass:
    """The object through which attention modules in a layer find the pass; to be changed before each call."""
    found = LayerPass()
    for module in layer.modules():
        object.__setattr__(module, _PASS, found)  # it is no module of its own
    return found


def register() -> None:
    """Make the attention function known to transformers."""
    AttentionInterface.register(NAME, attention)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' layers call it: `query` [1, H, T, D], `key` [1, K, T, D] -> [1, T, H, W], None.

    `s_aux` [H] are sinks.

    Raises:
        ConfigError: a layer asks for what packed attention does not have, such as a mask; names it.
    """
    unknown = [name for name, value in others.items() if value is not None and name not in _HARMLESS]
    if others.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise ConfigError(f"{type(module).__name__} is not causal")
    if attention_mask is not None:
        unknown.insert(0, "attention_mask")
    if unknown:
        raise ConfigError(
            f"{type(module).__name__} gives attention '{unknown[0]}', which packed attention does not have"
        )
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    spec = AttentionSpec(scale=scale, window=sliding_window, softcap=softcap, dropout=dropout, sinks=s_aux)
    return getattr(module, _PASS).attend(q, k, v, spec)[None], None
