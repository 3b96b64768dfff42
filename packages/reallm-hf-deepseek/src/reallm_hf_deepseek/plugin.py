"""The DeepSeek architectures with latent attention and experts, as tables."""

from __future__ import annotations

from dataclasses import replace

from reallm import HFFamily, hookimpl
from reallm.hf.standard import GATED_DECODER, MLP_BIAS
from reallm.hf.tables import Allowed, ConfigTable, Key, RopeRow
from reallm_hf_deepseek.rows import GROUPS, attn_scale, moe_row, rows

REALLM_HOOK_API = "1.5"


def _modules(ours: str, theirs: str, **names: str) -> dict[str, str]:
    return {f"{ours}.{name}": f"model.layers.{{}}.{theirs}.{of_theirs}" for name, of_theirs in names.items()}


EXPERT = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
LATENTS = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q_up": "q_b_proj",
           "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj"}  # fmt: skip
WEIGHTS = GATED_DECODER.updated(
    block={
        "attn.k": None,
        "attn.v": None,
        **_modules("attn", "self_attn", **LATENTS),
        **_modules("mlp", "mlp", router="gate"),
        **_modules("mlp.experts", "mlp.experts.{each}", **EXPERT),
        **_modules("mlp.shared", "mlp.shared_experts", **EXPERT),
    }
)
CONSTANTS = {"attention": "reallm_hf_deepseek.layers:LatentAttention", "attn_scale": attn_scale}
UNUSED = frozenset({"qk_head_dim", "ep_size", "seq_aux", "aux_loss_alpha", "output_router_logits"})
EVERY_LAYER = Allowed((1,), "experts in every n-th layer are not supported")
ROPE = RopeRow(rotary_dim=lambda known: known["extra"].rotated, interleaved=True)

TINY = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6, "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
    "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 1, "max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7,
        "mscale_all_dim": 1.0}  # fmt: skip
STRETCHED = {**TINY, "q_lora_rank": None, "first_k_dense_replace": 0, "rope_parameters": YARN}

V2 = HFFamily(
    names=("deepseek_v2",),
    model_type="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    critic_architectures=("DeepseekV2ForSequenceClassification",),
    config=ConfigTable(
        rows=rows(
            2048,
            ROPE,
            Key("mlp_bias", bool, MLP_BIAS, default=False),
            moe_row(
                (64, 1407, 2, 1.0, 0), {"normalize_top_k": False}, Key("num_experts_per_tok", int, "top_k"), GROUPS
            ),
        ),
        constants=CONSTANTS,
        irrelevant=UNUSED,
        restricted={
            "norm_topk_prob": Allowed((False,), "in this architecture the weights of experts are not normalized"),
            "scoring_func": Allowed(("softmax",), "sigmoid scores are those of deepseek_v3"),
            "moe_layer_freq": EVERY_LAYER,
        },
    ),
    weights=WEIGHTS,
    description="DeepSeek-V2 architecture: DeepSeek-V2, V2.5, V2-Lite, Coder-V2",
    check_configs={"tiny": {**TINY, "topk_method": "group_limited_greedy"}, "stretched": STRETCHED},
)

V3 = HFFamily(
    names=("deepseek_v3",),
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    critic_architectures=("DeepseekV3ForSequenceClassification",),
    config=ConfigTable(
        rows=rows(
            4096,
            replace(ROPE, interleaved_key="rope_interleave"),
            moe_row(
                (256, 2048, 1, 2.5, 3),
                {"scores": "sigmoid", "correction_bias": True, "group_top_scores": 2},
                Key("num_experts_per_tok", int, "top_k", default=8),
                Key("n_group", int, "n_groups", default=8),
                Key("topk_group", int, "top_k_groups", default=4),
                Key("norm_topk_prob", bool, "normalize_top_k", default=True),
            ),
        ),
        constants=CONSTANTS,
        irrelevant=UNUSED | {"num_nextn_predict_layers", "num_mtp_layers"},
        restricted={
            "scoring_func": Allowed(("sigmoid",), "softmax scores are those of deepseek_v2"),
            "topk_method": Allowed(("noaux_tc",), "other routers are those of deepseek_v2"),
            "moe_layer_freq": EVERY_LAYER,
        },
    ),
    weights=WEIGHTS.updated(
        block=_modules("mlp.router", "mlp.gate", correction_bias="e_score_correction_bias"),
        ignored=("model.layers.61.*",),  # the layer of multi-token prediction of the published checkpoints
    ),
    description="DeepSeek-V3 architecture: DeepSeek-V3, V3.1, R1, without multi-token prediction",
    check_configs={"tiny": TINY, "stretched": STRETCHED},
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The two families of this package."""
    return [V2, V3]
