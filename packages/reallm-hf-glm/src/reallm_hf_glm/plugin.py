"""The GLM architectures, dense and with experts, as tables."""

from __future__ import annotations

from functools import partial

from reallm import HFFamily, MoEConfig, hookimpl
from reallm.hf.standard import GATED_DECODER, QK_NORMS, QKV_BIAS, decoder_rows
from reallm.hf.tables import ConfigTable, ExpertBlocks, Key, LaterBlocks, Nested, RopeRow, fused

REALLM_HOOK_API = "1.5"

TINY_MOE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "use_qk_norm": True, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 16, "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
}  # fmt: skip

GLM4 = HFFamily(
    names=("glm4",),
    model_type="glm4",
    architectures=("Glm4ForCausalLM",),
    critic_architectures=("Glm4ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=2,
                max_positions=131072,
                norm_eps=1.5625e-07,
                head_dim=128,
                rope=RopeRow(interleaved=True, partial=0.5),
            ),
            Key("attention_bias", bool, QKV_BIAS, default=True),
        ),
        constants={"norm": "rms", "mlp": "gated", "norm_placement": "sandwich"},
    ),
    weights=GATED_DECODER.updated(
        block={
            "attn_post_norm": "model.layers.{}.post_self_attn_layernorm",
            ("mlp.gate", "mlp.up"): fused("model.layers.{}.mlp.gate_up_proj"),
            "mlp_post_norm": "model.layers.{}.post_mlp_layernorm",
        }
    ),
    description="GLM-4 architecture, with norms before and after each branch: GLM-4-9B-0414, GLM-4-32B-0414, GLM-Z1",
)

GLM4_MOE = HFFamily(
    names=("glm4_moe",),
    model_type="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=8, max_positions=131072, norm_eps=1e-05, rope=RopeRow(partial=0.5)),
            Key("attention_bias", bool, QKV_BIAS, default=False),
            Key("use_qk_norm", bool, "qk_norm", default=None, spellings={True: "head", False: None}),
            Nested(
                "moe",
                partial(MoEConfig, scores="sigmoid", correction_bias=True, group_top_scores=2, float32_logits=True),
                (
                    Key("n_routed_experts", int, "n_experts", default=128),
                    Key("num_experts_per_tok", int, "top_k", default=8),
                    Key("moe_intermediate_size", int, "intermediate_size", default=1408),
                    Key("n_shared_experts", int, "n_shared_experts", default=1),
                    Key("n_group", int, "n_groups", default=1),
                    Key("topk_group", int, "top_k_groups", default=1),
                    Key("norm_topk_prob", bool, "normalize_top_k", default=True),
                    Key("routed_scaling_factor", float, "scaling_factor", default=1.0),
                    ExpertBlocks(LaterBlocks("first_k_dense_replace", default=1)),
                ),
            ),
        ),
        constants={"norm": "rms", "mlp": "gated"},
        irrelevant=frozenset({"output_router_logits", "num_nextn_predict_layers", "num_mtp_layers"}),
    ),
    weights=GATED_DECODER.updated(
        block={
            **QK_NORMS,
            "mlp.router": "model.layers.{}.mlp.gate",
            "mlp.router.correction_bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
            "mlp.experts.gate": "model.layers.{}.mlp.experts.{each}.gate_proj",
            "mlp.experts.up": "model.layers.{}.mlp.experts.{each}.up_proj",
            "mlp.experts.down": "model.layers.{}.mlp.experts.{each}.down_proj",
            "mlp.shared.gate": "model.layers.{}.mlp.shared_experts.gate_proj",
            "mlp.shared.up": "model.layers.{}.mlp.shared_experts.up_proj",
            "mlp.shared.down": "model.layers.{}.mlp.shared_experts.down_proj",
        },
        # the layers of multi-token prediction of GLM-4.5-Air and GLM-4.5
        ignored=("model.layers.46.*", "model.layers.92.*"),
    ),
    description="GLM-4 architecture with experts: GLM-4.5, GLM-4.5-Air, GLM-4.6, without multi-token prediction",
    check_configs={"tiny": TINY_MOE},
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The two families of this package."""
    return [GLM4, GLM4_MOE]
