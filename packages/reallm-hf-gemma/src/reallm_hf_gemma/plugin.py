"""The Gemma architectures (text), as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ACTIVATIONS, ATTENTION_BIAS, GATED_DECODER, QK_NORMS, decoder_rows, without
from reallm.hf.tables import (
    INVERSE_SQUARE_ROOT,
    Allowed,
    ConfigTable,
    Key,
    LayerRopes,
    LayerTypes,
    sliding_except_every,
)

REALLM_HOOK_API = "1.1"

CAUSAL = {"use_bidirectional_attention": Allowed((False,), "only causal attention is supported")}
CONSTANTS = {
    "norm": "rms",
    "norm_offset": 1.0,
    "mlp": "gated",
    "embedding_multiplier": lambda known: known["hidden_size"] ** 0.5,
}
SANDWICH = GATED_DECODER.updated(
    block={
        "attn_post_norm": "model.layers.{}.post_attention_layernorm",
        "mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
        "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
    }
)

GELU_IS_TANH = {"gelu_pytorch_tanh": "gelu_tanh", **ACTIVATIONS, "gelu": "gelu_tanh"}

LATER_ROWS = (
    Key("attention_bias", bool, ATTENTION_BIAS, default=False),
    Key("query_pre_attn_scalar", float, "attn_scale", default=256**-0.5, conversion=INVERSE_SQUARE_ROOT),
)
"""What the second and third generation share."""

GEMMA = HFFamily(
    names=("gemma",),
    model_type="gemma",
    architectures=("GemmaForCausalLM",),
    critic_architectures=("GemmaForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *without(decoder_rows(n_kv_heads=16, max_positions=8192, head_dim=256, tied=True), "hidden_act"),
            # The first releases say gelu and mean its approximation, as transformers reads them.
            Key("hidden_act", str, "activation", default="gelu_tanh", spellings=GELU_IS_TANH),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
        ),
        constants=CONSTANTS,
        irrelevant=frozenset({"hidden_activation"}),
        restricted=CAUSAL,
    ),
    weights=GATED_DECODER,
    description="Gemma architecture: Gemma 1, CodeGemma",
)

GEMMA2 = HFFamily(
    names=("gemma2",),
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    critic_architectures=("Gemma2ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=4,
                max_positions=8192,
                head_dim=256,
                activation="gelu_pytorch_tanh",
                activation_key="hidden_activation",
                tied=True,
            ),
            *LATER_ROWS,
            Key("attn_logit_softcapping", float, "attn_softcap", default=50.0, nullable=True),
            Key("final_logit_softcapping", float, "logit_softcap", default=30.0, nullable=True),
            LayerTypes(default=sliding_except_every(2), window=4096),
        ),
        constants={**CONSTANTS, "norm_placement": "sandwich"},
        irrelevant=frozenset({"hidden_act", "cache_implementation"}),
        restricted=CAUSAL,
    ),
    weights=SANDWICH,
    description="Gemma 2 architecture",
)

GEMMA3 = HFFamily(
    names=("gemma3", "gemma3_text"),
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    critic_architectures=("Gemma3TextForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=4,
                max_positions=131072,
                head_dim=256,
                activation="gelu_pytorch_tanh",
                activation_key="hidden_activation",
                tied=True,
                rope=LayerTypes(
                    default=sliding_except_every(6, "sliding_window_pattern"),
                    window=4096,
                    older_keys=("sliding_window_pattern", "_sliding_window_pattern"),
                ),
            ),
            LayerRopes(full_theta=1e6, sliding_theta=1e4),
            *LATER_ROWS,
            Key("final_logit_softcapping", float, "logit_softcap", default=None, nullable=True),
        ),
        constants={**CONSTANTS, "norm_placement": "sandwich", "qk_norm": "head"},
        irrelevant=frozenset({"cache_implementation"}),
        restricted={**CAUSAL, "attn_logit_softcapping": Allowed((), "transformers does not cap scores of this model")},
    ),
    weights=SANDWICH.updated(block=QK_NORMS),
    description="Gemma 3 architecture, text only: Gemma 3 270M and 1B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The three families of this package."""
    return [GEMMA, GEMMA2, GEMMA3]
