"""The Granite architectures, dense and with experts, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm import HFFamily, MoEConfig, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, AUX_LOSS, GATED_DECODER, MLP_BIAS, decoder_rows, same_as
from reallm.hf.tables import RECIPROCAL, Computed, ConfigTable, FieldRow, Key, Nested, fused

REALLM_HOOK_API = "1.5"

ROWS = (
    *decoder_rows(n_kv_heads=same_as("n_q_heads"), max_positions=2048),
    Key("attention_bias", bool, ATTENTION_BIAS, default=False),
    Key("attention_multiplier", float, "attn_scale", default=1.0),
    Key("embedding_multiplier", float, "embedding_multiplier", default=1.0),
    Key("residual_multiplier", float, "residual_multiplier", default=1.0),
    Key("logits_scaling", float, "logit_multiplier", default=1.0, conversion=RECIPROCAL),
)
CONSTANTS = {"norm": "rms", "mlp": "gated"}


def _read_shared(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    size = raw.get("shared_intermediate_size", 0)
    return {"n_shared_experts": 1, "shared_intermediate_size": size} if size else {}


SHARED = Computed(
    keys=("shared_intermediate_size",),
    fields=("n_shared_experts", "shared_intermediate_size"),
    reading=_read_shared,
    writing=lambda moe, base: {"shared_intermediate_size": moe.shared_expert_size},
)
"""The row for the shared expert, of any size; 0 leaves it out."""


def _moe(*more: FieldRow) -> Nested:
    """The row for experts, all of the intermediate size of the model."""
    return Nested(
        "moe",
        MoEConfig,
        (
            Key("num_local_experts", int, "n_experts", default=8),
            Key("num_experts_per_tok", int, "top_k", default=2),
            AUX_LOSS,
            *more,
        ),
    )


EXPERTS = GATED_DECODER.updated(
    block={
        "mlp.gate": None,
        "mlp.up": None,
        "mlp.down": None,
        "mlp.router": "model.layers.{}.block_sparse_moe.router.layer",
        ("mlp.experts.gate", "mlp.experts.up"): fused("model.layers.{}.block_sparse_moe.input_linear"),
        "mlp.experts.down": "model.layers.{}.block_sparse_moe.output_linear",
    }
)

TINY_SHARED = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24,
    "max_position_embeddings": 64,
}  # fmt: skip

GRANITE = HFFamily(
    names=("granite",),
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    config=ConfigTable(rows=(*ROWS, Key("mlp_bias", bool, MLP_BIAS, default=False)), constants=CONSTANTS),
    weights=GATED_DECODER,
    description="Granite architecture, dense: Granite 3.0 to 3.3, Granite Code",
)

GRANITEMOE = HFFamily(
    names=("granitemoe",),
    model_type="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    config=ConfigTable(rows=(*ROWS, _moe()), constants=CONSTANTS),
    weights=EXPERTS,
    description="Granite architecture with experts: Granite 3.0 and 3.1 1B-A400M, 3B-A800M",
)

GRANITEMOESHARED = HFFamily(
    names=("granitemoeshared",),
    model_type="granitemoeshared",
    architectures=("GraniteMoeSharedForCausalLM",),
    config=ConfigTable(rows=(*ROWS, _moe(SHARED)), constants=CONSTANTS),
    weights=EXPERTS.updated(
        block={
            ("mlp.shared.gate", "mlp.shared.up"): fused("model.layers.{}.shared_mlp.input_linear"),
            "mlp.shared.down": "model.layers.{}.shared_mlp.output_linear",
        }
    ),
    description="Granite architecture with experts and a shared one: moe-7b-1b-active-shared-experts",
    check_configs={"tiny": TINY_SHARED},
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The three families of this package."""
    return [GRANITE, GRANITEMOE, GRANITEMOESHARED]
