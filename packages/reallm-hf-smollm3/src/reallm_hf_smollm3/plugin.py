"""The SmolLM3 architecture, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, MLP_BIAS, decoder_rows
from reallm.hf.tables import (
    ConfigTable,
    InBlocks,
    Key,
    LayerTypes,
    ListedBlocks,
    RopeRow,
    all_except_every,
    sliding_without,
)

REALLM_HOOK_API = "1.5"

SMOLLM3 = HFFamily(
    names=("smollm3",),
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    critic_architectures=("SmolLM3ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=4,
                max_positions=32768,
                tied=True,
                rope=InBlocks(
                    RopeRow(default_theta=2e6),
                    ListedBlocks(
                        "no_rope_layers",  # 1 for a layer with RoPE
                        default=all_except_every(4, "no_rope_layer_interval"),
                        older_keys=("no_rope_layer_interval",),
                    ),
                ),
            ),
            LayerTypes(default=sliding_without("rope"), enabled_key="use_sliding_window"),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
            Key("mlp_bias", bool, MLP_BIAS, default=False),
        ),
        constants={"norm": "rms", "mlp": "gated"},
    ),
    weights=GATED_DECODER,
    description="SmolLM3 architecture, with RoPE in three of four layers: SmolLM3-3B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [SMOLLM3]
