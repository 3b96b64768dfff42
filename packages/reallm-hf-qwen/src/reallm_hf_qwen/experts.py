"""Rows and names of experts, the same in all Qwen architectures that have them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.hf.standard import AUX_LOSS
from reallm.hf.tables import Computed, FieldRow, Key


def _expert_layers(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Every `decoder_sparse_step`-th layer has experts, less those in `mlp_only_layers`."""
    step, dense = raw.get("decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    layers = tuple(n for n in range(known["n_layers"]) if (n + 1) % step == 0 and n not in dense)
    return {"layers": None if len(layers) == known["n_layers"] else layers}


def _dense_layers(config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    dense = [n for n in range(config.n_layers) if config.layers is not None and n not in config.layers]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def expert_rows(n_experts: int, top_k: int, size: int, *, normalized: bool) -> tuple[FieldRow, ...]:
    """The rows of a `Nested` row for `MoEConfig`, with the defaults of an architecture."""
    return (
        Key("num_experts", int, "n_experts", default=n_experts, aliases=("num_local_experts",)),
        Key("num_experts_per_tok", int, "top_k", default=top_k),
        Key("moe_intermediate_size", int, "intermediate_size", default=size),
        Key("norm_topk_prob", bool, "normalize_top_k", default=normalized),
        Computed(("decoder_sparse_step", "mlp_only_layers"), ("layers",), _expert_layers, _dense_layers),
        AUX_LOSS,
    )


EXPERTS = {
    "mlp.router": "model.layers.{}.mlp.gate",
    "mlp.experts.gate": "model.layers.{}.mlp.experts.{each}.gate_proj",
    "mlp.experts.up": "model.layers.{}.mlp.experts.{each}.up_proj",
    "mlp.experts.down": "model.layers.{}.mlp.experts.{each}.down_proj",
}
"""Entries of the weight table."""
