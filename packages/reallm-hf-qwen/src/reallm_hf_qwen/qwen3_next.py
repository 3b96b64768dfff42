"""The Qwen3-Next architecture, as tables: gated delta nets, and gated attention in every fourth layer."""

from __future__ import annotations

from functools import partial

from reallm import Extra, HFFamily, MoEConfig
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, QK_NORMS, decoder_rows
from reallm.hf.tables import (
    AttentionInBlocks,
    ConfigTable,
    Key,
    ListedBlocks,
    Nested,
    RopeRow,
    all_except_every,
    fused,
)
from reallm_hf_qwen.experts import EXPERTS, expert_rows

LINEAR, FULL = "linear_attention", "full_attention"
LINEAR_LAYERS = ListedBlocks(
    "layer_types",
    all_except_every(4, "full_attention_interval"),
    chosen=LINEAR,
    other=FULL,
    older_keys=("full_attention_interval",),
)
DELTA_NET = (
    Key("linear_num_key_heads", int, "n_key_heads", default=16),
    Key("linear_num_value_heads", int, "n_value_heads", default=32),
    Key("linear_key_head_dim", int, "key_dim", default=128),
    Key("linear_value_head_dim", int, "value_dim", default=128),
    Key("linear_conv_kernel_dim", int, "conv_size", default=4),
)
WEIGHTS = GATED_DECODER.updated(
    block={
        **QK_NORMS,
        ("attn.q", "attn.gate"): fused("model.layers.{}.self_attn.q_proj", groups="n_q_heads"),
        ("attn.in_q", "attn.in_k", "attn.in_v", "attn.in_z"): fused(
            "model.layers.{}.linear_attn.in_proj_qkvz", groups="extra.n_key_heads"
        ),
        ("attn.in_b", "attn.in_a"): fused("model.layers.{}.linear_attn.in_proj_ba", groups="extra.n_key_heads"),
        ("attn.q_conv", "attn.k_conv", "attn.v_conv"): fused("model.layers.{}.linear_attn.conv1d", dim=0),
        "attn.decay.a_log": "model.layers.{}.linear_attn.A_log",
        "attn.decay.dt_bias": "model.layers.{}.linear_attn.dt_bias",
        "attn.norm": "model.layers.{}.linear_attn.norm",
        "attn.out": "model.layers.{}.linear_attn.out_proj",
        **EXPERTS,
        "mlp.shared.gate": "model.layers.{}.mlp.shared_expert.gate_proj",
        "mlp.shared.up": "model.layers.{}.mlp.shared_expert.up_proj",
        "mlp.shared.down": "model.layers.{}.mlp.shared_expert.down_proj",
        "mlp.shared.token_gate": "model.layers.{}.mlp.shared_expert_gate",
    },
    ignored=("mtp.*",),  # the module of multi-token prediction
)

# one linear layer each: in float32, rounding errors of transformers' random models grow tenfold in each of them
TINY = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "layer_types": [LINEAR, FULL], "linear_num_key_heads": 4,
    "linear_num_value_heads": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 6, "num_experts": 6,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24,
    "max_position_embeddings": 64,
}  # fmt: skip
MIXED = {
    **TINY, "layer_types": [FULL, LINEAR], "mlp_only_layers": [1], "attention_bias": True, "norm_topk_prob": False,
    "linear_conv_kernel_dim": 3,
}  # fmt: skip

QWEN3_NEXT = HFFamily(
    names=("qwen3_next",),
    model_type="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    critic_architectures=("Qwen3NextForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=2, max_positions=32768, head_dim=256, rope=RopeRow(partial=0.25)),
            AttentionInBlocks("reallm_hf_qwen.layers:GatedDeltaNet", LINEAR_LAYERS),
            Nested("extra", Extra, DELTA_NET),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
            Nested(
                "moe",
                partial(MoEConfig, n_shared_experts=1, shared_gate=True),
                (
                    *expert_rows(512, 10, 512, normalized=True),
                    Key("shared_expert_intermediate_size", int, "shared_intermediate_size", default=512),
                ),
            ),
        ),
        constants={"norm": "rms", "norm_offset": 1.0, "mlp": "gated", "qk_norm": "head", "attn_output_gate": True},
    ),
    weights=WEIGHTS,
    description="Qwen3-Next architecture: Qwen3-Next-80B-A3B, without multi-token prediction",
    check_configs={"tiny": TINY, "mixed": MIXED},
)
