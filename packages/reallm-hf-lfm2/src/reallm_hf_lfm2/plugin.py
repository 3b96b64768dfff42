"""The LFM2 architectures, dense and with experts, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from reallm import Extra, HFFamily, MoEConfig, hookimpl
from reallm.hf.standard import GATED_DECODER, decoder_rows, without
from reallm.hf.tables import (
    AttentionInBlocks,
    ConfigTable,
    ExpertBlocks,
    FieldRow,
    Key,
    LaterBlocks,
    ListedBlocks,
    Nested,
    RopeRow,
    fused,
)
from reallm_hf_lfm2.mlp_size import MLP_SIZE

REALLM_HOOK_API = "1.5"

TINY = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 60, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "layer_types": ["conv", "full_attention", "conv"],
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TINY_MOE = {
    **TINY, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "full_attention", "conv"],
    "num_dense_layers": 2, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip


def attention_by_index(raw: Mapping[str, Any], known: Mapping[str, Any]) -> list[bool]:
    """Whether each block has a convolution, in files with the numbers of those that have attention."""
    with_attention = raw.get("full_attn_idxs")
    return [with_attention is not None and block not in with_attention for block in range(known["n_layers"])]


def rows(size: FieldRow) -> tuple[FieldRow, ...]:
    """The rows of both families; `size` is that for the size of MLPs."""
    shared = decoder_rows(
        n_kv_heads=8,
        max_positions=128000,
        norm_eps=1e-5,
        norm_eps_key="norm_eps",
        rope=RopeRow(default_theta=1e6),
    )
    return (
        *without(shared, "intermediate_size", "hidden_act", "attention_dropout", "tie_word_embeddings"),
        size,
        # transformers prefers the older name
        Key("tie_embedding", bool, "tied_embeddings", default=True, aliases=("tie_word_embeddings",)),
        AttentionInBlocks(
            "reallm_hf_lfm2.layers:ShortConv",
            ListedBlocks("layer_types", attention_by_index, "conv", "full_attention", older_keys=("full_attn_idxs",)),
        ),
        Nested(
            "extra",
            Extra,
            (Key("conv_L_cache", int, "conv_size", default=3), Key("conv_bias", bool, "conv_bias", default=False)),
        ),
    )


CONSTANTS = {"norm": "rms", "mlp": "gated", "activation": "silu", "qk_norm": "head"}
WEIGHTS = GATED_DECODER.updated(
    block={
        "attn.o": "model.layers.{}.self_attn.out_proj",
        "attn.q_norm": "model.layers.{}.self_attn.q_layernorm",
        "attn.k_norm": "model.layers.{}.self_attn.k_layernorm",
        ("attn.b", "attn.c", "attn.x"): fused("model.layers.{}.conv.in_proj"),
        "attn.conv": "model.layers.{}.conv.conv",
        "attn.out": "model.layers.{}.conv.out_proj",
        "attn_norm": "model.layers.{}.operator_norm",
        "mlp_norm": "model.layers.{}.ffn_norm",
        "mlp.gate": "model.layers.{}.feed_forward.w1",
        "mlp.up": "model.layers.{}.feed_forward.w3",
        "mlp.down": "model.layers.{}.feed_forward.w2",
    },
    head={"norm": "model.embedding_norm"},
)
IRRELEVANT = frozenset(
    {
        "block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu",
        "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta",
        "use_pos_enc",
    }
)  # fmt: skip
"""Keys of published files that nothing reads."""

LFM2 = HFFamily(
    names=("lfm2",),
    model_type="lfm2",
    architectures=("Lfm2ForCausalLM",),
    config=ConfigTable(rows=rows(MLP_SIZE), constants=CONSTANTS, irrelevant=IRRELEVANT),
    weights=WEIGHTS,
    description="LFM2 architecture, short convolutions beside attention: LFM2-350M, 700M, 1.2B, 2.6B",
    check_configs={"tiny": TINY},
)

LFM2_MOE = HFFamily(
    names=("lfm2_moe",),
    model_type="lfm2_moe",
    architectures=("Lfm2MoeForCausalLM",),
    config=ConfigTable(
        rows=(
            *rows(Key("intermediate_size", int, "intermediate_size", default=7168)),
            Nested(
                "moe",
                partial(MoEConfig, scores="sigmoid"),
                (
                    Key("num_experts", int, "n_experts", default=32),
                    Key("num_experts_per_tok", int, "top_k", default=4),
                    Key("moe_intermediate_size", int, "intermediate_size", default=1792),
                    Key("use_expert_bias", bool, "correction_bias", default=True),
                    Key("norm_topk_prob", bool, "normalize_top_k", default=True),
                    Key("routed_scaling_factor", float, "scaling_factor", default=1.0),
                    ExpertBlocks(LaterBlocks("num_dense_layers", default=2)),
                ),
            ),
        ),
        constants=CONSTANTS,
        irrelevant=IRRELEVANT | {"output_router_logits"},
    ),
    weights=WEIGHTS.updated(
        block={
            "mlp.router": "model.layers.{}.feed_forward.gate",
            "mlp.router.correction_bias": "model.layers.{}.feed_forward.expert_bias",
            "mlp.experts.gate": "model.layers.{}.feed_forward.experts.{each}.w1",
            "mlp.experts.up": "model.layers.{}.feed_forward.experts.{each}.w3",
            "mlp.experts.down": "model.layers.{}.feed_forward.experts.{each}.w2",
        }
    ),
    description="LFM2 architecture with experts: LFM2-8B-A1B",
    check_configs={"tiny": TINY_MOE},
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The two families of this package."""
    return [LFM2, LFM2_MOE]
