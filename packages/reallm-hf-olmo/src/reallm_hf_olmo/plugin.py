"""The OLMo architectures, dense and with experts, as tables."""

from __future__ import annotations

from reallm import HFFamily, MoEConfig, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, QK_NORMS, aux_loss, decoder_rows, same_as
from reallm.hf.tables import ConfigTable, Key, LayerRopes, LayerTypes, Nested, sliding_except_every

REALLM_HOOK_API = "1.5"

BIAS = Key("attention_bias", bool, ATTENTION_BIAS, default=False)
NORMS_OF_BRANCHES = GATED_DECODER.updated(
    block={
        **QK_NORMS,
        "attn_norm": None,
        "mlp_norm": None,
        "attn_post_norm": "model.layers.{}.post_attention_layernorm",
        "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
    }
)
CONSTANTS = {"norm": "rms", "mlp": "gated", "qk_norm": "whole"}

OLMO2 = HFFamily(
    names=("olmo2",),
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM",),
    critic_architectures=("Olmo2ForSequenceClassification",),
    config=ConfigTable(
        rows=(*decoder_rows(n_kv_heads=same_as("n_q_heads"), max_positions=2048, norm_eps=1e-5), BIAS),
        constants={**CONSTANTS, "norm_placement": "branch"},
    ),
    weights=NORMS_OF_BRANCHES,
    description="OLMo 2 architecture",
)

OLMO3 = HFFamily(
    names=("olmo3",),
    model_type="olmo3",
    architectures=("Olmo3ForCausalLM",),
    critic_architectures=("Olmo3ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=same_as("n_q_heads"),
                max_positions=2048,
                norm_eps=1e-5,
                rope=LayerTypes(default=sliding_except_every(4), window=4096),
            ),
            LayerRopes(full_theta=5e5, sliding_theta=5e5, sliding_theta_key=None),
            BIAS,
        ),
        constants={**CONSTANTS, "norm_placement": "branch"},
    ),
    weights=NORMS_OF_BRANCHES,
    description="OLMo 3 architecture, with a sliding window in three of four layers",
)

OLMOE = HFFamily(
    names=("olmoe",),
    model_type="olmoe",
    architectures=("OlmoeForCausalLM",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=same_as("n_q_heads"),
                max_positions=4096,
                norm_eps=1e-5,
                head_dim_key=None,
            ),
            BIAS,
            Key("clip_qkv", float, "qkv_clip", default=None, nullable=True),
            Nested(
                "moe",
                MoEConfig,
                (
                    Key("num_experts", int, "n_experts", default=64),
                    Key("num_experts_per_tok", int, "top_k", default=8),
                    Key("norm_topk_prob", bool, "normalize_top_k", default=False),
                    aux_loss(0.01),
                ),
            ),
        ),
        constants=CONSTANTS,
    ),
    weights=GATED_DECODER.updated(
        block={
            **QK_NORMS,
            "mlp.gate": None,
            "mlp.up": None,
            "mlp.down": None,
            "mlp.router": "model.layers.{}.mlp.gate",
            "mlp.experts.gate": "model.layers.{}.mlp.experts.{each}.gate_proj",
            "mlp.experts.up": "model.layers.{}.mlp.experts.{each}.up_proj",
            "mlp.experts.down": "model.layers.{}.mlp.experts.{each}.down_proj",
        }
    ),
    description="OLMoE architecture, with experts: OLMoE-1B-7B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The three families of this package."""
    return [OLMO2, OLMO3, OLMOE]
