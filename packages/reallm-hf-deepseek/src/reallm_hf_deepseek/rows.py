"""Rows of the configuration tables that both versions have. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from reallm import Extra, MoEConfig
from reallm.errors import ConfigError
from reallm.hf.standard import decoder_rows, same_as
from reallm.hf.tables import Computed, ExpertBlocks, FieldRow, Key, LaterBlocks, Nested, RopeRow

Fields = Mapping[str, Any]


def attn_scale(known: Fields) -> float:
    """The factor on attention scores, which YaRN changes for longer contexts."""
    rope, scale = known["rope"], known["head_dim"] ** -0.5
    if rope.mscale_all_dim and rope.factor > 1:
        scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2
    return float(scale)


def _check_head_dim(raw: Fields, known: Fields) -> dict[str, Any]:
    """transformers writes `head_dim`, with the number of rotated dims."""
    rotated = known["extra"].rotated
    if raw.get("head_dim") not in (None, rotated):
        raise ConfigError(f"head_dim={raw['head_dim']} must be qk_rope_head_dim={rotated}; leave it out")
    return {}


def _read_groups(raw: Fields, known: Fields) -> dict[str, Any]:
    limited = raw.get("topk_method") == "group_limited_greedy"
    return {"n_groups": raw.get("n_group") or 1, "top_k_groups": raw.get("topk_group") or 1} if limited else {}


def _write_groups(moe: Any, base: Fields) -> dict[str, Any]:
    if moe.n_groups == 1:
        return {"topk_method": "greedy"}
    return {"topk_method": "group_limited_greedy", "n_group": moe.n_groups, "topk_group": moe.top_k_groups}


GROUPS = Computed(("topk_method", "n_group", "topk_group"), ("n_groups", "top_k_groups"), _read_groups, _write_groups)
"""The row for the groups of experts in version 2."""


def rows(max_positions: int, rope: RopeRow, *more: FieldRow) -> tuple[FieldRow, ...]:
    """The rows of both versions, and more."""
    sizes = (
        Key("q_lora_rank", int, "q_rank", default=1536, nullable=True),
        Key("kv_lora_rank", int, "kv_rank", default=512),
        Key("qk_nope_head_dim", int, "unrotated", default=128),
        Key("qk_rope_head_dim", int, "rotated", default=64),
    )
    return (
        Nested("extra", Extra, sizes),
        *decoder_rows(
            n_kv_heads=same_as("n_q_heads"),
            max_positions=max_positions,
            head_dim_key=None,
            head_dim=lambda known: known["extra"].unrotated + known["extra"].rotated,
            rope=rope,
        ),
        Computed(("head_dim",), (), _check_head_dim, lambda config, base: {}),
        Key("v_head_dim", int, "v_head_dim", default=128),
        Key("attention_bias", bool, "o_bias", default=False),
        *more,
    )


def moe_row(defaults: tuple[int, int, int, float, int], constants: Fields, *more: FieldRow) -> Nested:
    """The row for experts: keys of both versions, with these defaults, and more."""
    n_experts, size, n_shared, factor, n_dense = defaults
    keys = (
        Key("n_routed_experts", int, "n_experts", default=n_experts),
        Key("moe_intermediate_size", int, "intermediate_size", default=size),
        Key("n_shared_experts", int, "n_shared_experts", default=n_shared),
        Key("routed_scaling_factor", float, "scaling_factor", default=factor),
        ExpertBlocks(LaterBlocks("first_k_dense_replace", default=n_dense)),
    )
    return Nested("moe", partial(MoEConfig, float32_logits=True, **constants), (*keys, *more))
