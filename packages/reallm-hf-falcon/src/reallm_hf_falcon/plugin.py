"""The Falcon architecture, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm import HFFamily, hookimpl
from reallm.errors import ConfigError
from reallm.hf.standard import ACTIVATIONS, ATTENTION_BIAS, head_dim_from_hidden_size
from reallm.hf.tables import Allowed, Computed, ConfigTable, Derived, Key, RopeRow, WeightTable, fused

REALLM_HOOK_API = "1.5"

KEYS = ("new_decoder_architecture", "multi_query", "num_kv_heads", "parallel_attn", "num_ln_in_parallel_attn")
ATTENTION = "transformer.h.{}.self_attention"
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def _read_generation(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """KV heads and norms: two generations of the architecture have them by different keys."""
    new, parallel = bool(raw.get("new_decoder_architecture")), raw.get("parallel_attn", True)
    heads = known["n_q_heads"] if raw.get("num_kv_heads") is None else raw["num_kv_heads"]
    n_norms = (2 if new else 1) if raw.get("num_ln_in_parallel_attn") is None else raw["num_ln_in_parallel_attn"]
    if n_norms != 1 and not (new and parallel and n_norms == 2):
        raise ConfigError(f"num_ln_in_parallel_attn={n_norms} is not supported with new_decoder_architecture={new}")
    return {
        "n_kv_heads": 1 if raw.get("multi_query", True) and not new else heads,
        "parallel_residual": bool(parallel),
        "shared_norm": bool(parallel) and n_norms == 1,
    }


def _write_generation(config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    grouped = config.n_kv_heads not in (1, config.n_q_heads)
    new = grouped or (config.parallel_residual and not config.shared_norm)
    if new and not config.parallel_residual:
        raise ConfigError("parallel_residual=False cannot be expressed with grouped KV heads or two norms")
    return {
        "new_decoder_architecture": new,
        "multi_query": config.n_kv_heads == 1,
        "num_kv_heads": config.n_kv_heads,
        "parallel_attn": config.parallel_residual,
        "num_ln_in_parallel_attn": (1 if config.shared_norm else 2) if new else None,
    }


def _norm(in_two: str, alone: str) -> Any:
    """An entry whose name depends on whether attention and MLP, in parallel, have a norm each."""
    return lambda config: in_two if config.parallel_residual and not config.shared_norm else alone


FALCON = HFFamily(
    names=("falcon",),
    model_type="falcon",
    architectures=("FalconForCausalLM",),
    critic_architectures=("FalconForSequenceClassification",),
    config=ConfigTable(
        rows=(
            Key("vocab_size", int, "vocab_size", default=65024),
            Key("hidden_size", int, "hidden_size", default=4544, aliases=("n_embed",)),
            Key("num_hidden_layers", int, "n_layers", default=32),
            Key("num_attention_heads", int, "n_q_heads", default=71),
            Computed(KEYS, ("n_kv_heads", "parallel_residual", "shared_norm"), _read_generation, _write_generation),
            Derived("head_dim", head_dim_from_hidden_size),
            Key("ffn_hidden_size", int, "intermediate_size", default=lambda known: 4 * known["hidden_size"]),
            Key("max_position_embeddings", int, "max_positions", default=2048),
            Key("activation", str, "activation", default="gelu", spellings=ACTIVATIONS),
            Key("layer_norm_epsilon", float, "norm_eps", default=1e-5),
            Key("initializer_range", float, "init_std", default=0.02),
            Key("tie_word_embeddings", bool, "tied_embeddings", default=True),
            Key("attention_dropout", float, "attn_dropout", default=0.0),
            Key("bias", bool, (*ATTENTION_BIAS, "up_bias", "down_bias"), default=False),
            RopeRow(),
        ),
        constants={"norm": "layer", "norm_bias": True, "mlp": "plain"},
        restricted={
            "alibi": Allowed((False,), "ALiBi is not supported"),
            "hidden_dropout": Allowed((0.0,), "set it to 0; the sum of both branches would be dropped, not each"),
        },
    ),
    weights=WeightTable(
        embedding={"tokens": "transformer.word_embeddings"},
        block={
            "attn_norm": _norm("transformer.h.{}.ln_attn", "transformer.h.{}.input_layernorm"),
            ("attn.q", "attn.k", "attn.v"): fused(
                "transformer.h.{}.self_attention.query_key_value", groups="n_kv_heads"
            ),
            "attn.o": f"{ATTENTION}.dense",
            "mlp_norm": _norm("transformer.h.{}.ln_mlp", "transformer.h.{}.post_attention_layernorm"),
            "mlp.up": "transformer.h.{}.mlp.dense_h_to_4h",
            "mlp.down": "transformer.h.{}.mlp.dense_4h_to_h",
        },
        head={"norm": "transformer.ln_f", "out": "lm_head"},
        critic_head={"out": "score"},
        ignored=("*.rotary_emb.inv_freq",),
    ),
    description="Falcon architecture with RoPE: Falcon 7B, 11B, 40B and 180B",
    check_configs={
        "one-kv-head": SIZES,
        "grouped": {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
    },
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [FALCON]
