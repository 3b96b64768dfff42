"""The GPT-2 architecture, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ACTIVATIONS, ATTENTION_BIAS
from reallm.hf.tables import Allowed, ConfigTable, Key, WeightTable, fused, transposed

REALLM_HOOK_API = "1.1"

GPT2 = HFFamily(
    names=("gpt2",),
    model_type="gpt2",
    architectures=("GPT2LMHeadModel",),
    critic_architectures=("GPT2ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            Key("vocab_size", int, "vocab_size", default=50257),
            Key("n_positions", int, "max_positions", default=1024),
            Key("n_embd", int, "hidden_size", default=768),
            Key("n_layer", int, "n_layers", default=12),
            Key("n_head", int, ("n_q_heads", "n_kv_heads"), default=12),
            Key("n_inner", int, "intermediate_size", default=lambda known: 4 * known["hidden_size"]),
            Key("activation_function", str, "activation", default="gelu_tanh", spellings=ACTIVATIONS),
            Key("resid_pdrop", float, "residual_dropout", default=0.1),
            Key("embd_pdrop", float, "embedding_dropout", default=0.1),
            Key("attn_pdrop", float, "attn_dropout", default=0.1),
            Key("layer_norm_epsilon", float, "norm_eps", default=1e-5),
            Key("initializer_range", float, "init_std", default=0.02),
            Key("tie_word_embeddings", bool, "tied_embeddings", default=True),
        ),
        constants={
            "head_dim": lambda known: known["hidden_size"] // known["n_q_heads"],
            "norm": "layer",
            "norm_bias": True,
            "mlp": "plain",
            **dict.fromkeys((*ATTENTION_BIAS, "up_bias", "down_bias"), True),
            "rope": None,
            "learned_positions": True,
        },
        irrelevant=frozenset(
            {
                "n_ctx",
                "reorder_and_upcast_attn",  # the same in other steps
                "summary_activation",
                "summary_first_dropout",
                "summary_proj_to_labels",
                "summary_type",
                "summary_use_proj",
            }
        ),
        restricted={
            "scale_attn_weights": Allowed((True,), "scores that are not divided by the root of the head size"),
            "scale_attn_by_inverse_layer_idx": Allowed((False,), "scores that are divided by the layer's number"),
        },
    ),
    weights=WeightTable(
        embedding={"tokens": "transformer.wte", "positions": "transformer.wpe"},
        block={
            "attn_norm": "transformer.h.{}.ln_1",
            ("attn.q", "attn.k", "attn.v"): fused("transformer.h.{}.attn.c_attn", transposed=True),
            "attn.o": transposed("transformer.h.{}.attn.c_proj"),
            "mlp_norm": "transformer.h.{}.ln_2",
            "mlp.up": transposed("transformer.h.{}.mlp.c_fc"),
            "mlp.down": transposed("transformer.h.{}.mlp.c_proj"),
        },
        head={"norm": "transformer.ln_f", "out": "lm_head"},
        critic_head={"out": "score"},
        ignored=("*.attn.bias", "*.attn.masked_bias"),  # masks
        optional_prefix="transformer.",
    ),
    description="GPT-2 architecture: GPT-2, DistilGPT2, DialoGPT",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [GPT2]
