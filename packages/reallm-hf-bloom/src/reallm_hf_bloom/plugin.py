"""The BLOOM architecture, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, head_dim_from_hidden_size
from reallm.hf.tables import Allowed, ConfigTable, Derived, Key, WeightTable, fused

REALLM_HOOK_API = "1.5"

BLOCK = "transformer.h.{}"

BLOOM = HFFamily(
    names=("bloom",),
    model_type="bloom",
    architectures=("BloomForCausalLM",),
    critic_architectures=("BloomForSequenceClassification",),
    config=ConfigTable(
        rows=(
            Key("vocab_size", int, "vocab_size", default=250880),
            Key("hidden_size", int, "hidden_size", default=64, aliases=("n_embed",)),
            Key("n_layer", int, "n_layers", default=2, aliases=("num_hidden_layers",)),
            Key("n_head", int, ("n_q_heads", "n_kv_heads"), default=8, aliases=("num_attention_heads",)),
            Derived("head_dim", head_dim_from_hidden_size),
            Key("seq_length", int, "max_positions", default=2048),  # of pretraining; nothing limits positions
            Key("layer_norm_epsilon", float, "norm_eps", default=1e-5),
            Key("initializer_range", float, "init_std", default=0.02),
            Key("hidden_dropout", float, "residual_dropout", default=0.0),
            Key("attention_dropout", float, "attn_dropout", default=0.0),
            Key("tie_word_embeddings", bool, "tied_embeddings", default=True),
        ),
        constants={
            "intermediate_size": lambda known: 4 * known["hidden_size"],
            "rope": None,
            "alibi_scale": 1.0,
            "embedding_norm": True,
            "norm": "layer",
            "norm_bias": True,
            "mlp": "plain",
            "activation": "gelu_tanh",
            **dict.fromkeys((*ATTENTION_BIAS, "up_bias", "down_bias"), True),
        },
        # how the training code computed, and not what
        irrelevant=frozenset(
            {
                "attention_softmax_in_fp32",
                "bias_dropout_fusion",
                "masked_softmax_fusion",
                "n_inner",
                "offset_alibi",
                "pretraining_tp",
                "skip_bias_add",
                "skip_bias_add_qkv",
                "slow_but_exact",
            }
        ),
        restricted={
            "apply_residual_connection_post_layernorm": Allowed((False,), "residuals behind the norms"),
        },
    ),
    weights=WeightTable(
        embedding={
            "tokens": "transformer.word_embeddings",
            "embedding_norm": "transformer.word_embeddings_layernorm",
        },
        block={
            "attn_norm": f"{BLOCK}.input_layernorm",
            ("attn.q", "attn.k", "attn.v"): fused(f"{BLOCK}.self_attention.query_key_value", groups="n_kv_heads"),
            "attn.o": f"{BLOCK}.self_attention.dense",
            "mlp_norm": f"{BLOCK}.post_attention_layernorm",
            "mlp.up": f"{BLOCK}.mlp.dense_h_to_4h",
            "mlp.down": f"{BLOCK}.mlp.dense_4h_to_h",
        },
        head={"norm": "transformer.ln_f", "out": "lm_head"},
        critic_head={"out": "score"},
        optional_prefix="transformer.",
    ),
    description="BLOOM architecture: BLOOM and BLOOMZ",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [BLOOM]
