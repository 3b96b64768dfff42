"""What most decoder-only families of HuggingFace have in common, as building blocks for a family's tables.

A family takes these and adds or replaces what differs. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.hf.rope_io import RopeRow
from reallm.hf.tables import Key, Row, WeightTable

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names of activations -> ours."""

GATED_DECODER = WeightTable(
    embedding={"tokens": "model.embed_tokens"},
    block={
        "attn.q": "model.layers.{}.self_attn.q_proj",
        "attn.k": "model.layers.{}.self_attn.k_proj",
        "attn.v": "model.layers.{}.self_attn.v_proj",
        "attn.o": "model.layers.{}.self_attn.o_proj",
        "mlp.gate": "model.layers.{}.mlp.gate_proj",
        "mlp.up": "model.layers.{}.mlp.up_proj",
        "mlp.down": "model.layers.{}.mlp.down_proj",
        "attn_norm": "model.layers.{}.input_layernorm",
        "mlp_norm": "model.layers.{}.post_attention_layernorm",
    },
    head={"norm": "model.norm", "out": "lm_head"},
    critic_head={"out": "score"},
    ignored=("*.rotary_emb.inv_freq",),
)
"""Names of a decoder with pre-norms, grouped-query attention and a gated MLP."""


def same_as(name: str) -> Any:
    """A default: the value of another field, `same_as("n_q_heads")`."""
    return lambda known: known[name]


def head_dim_from_hidden_size(known: Mapping[str, Any]) -> int:
    """A default: the hidden size divided among the heads."""
    return int(known["hidden_size"] // known["n_q_heads"])


def decoder_rows(*, n_kv_heads: Any, max_positions: int, norm_eps: float = 1e-6) -> tuple[Row, ...]:
    """Rows that nearly all families share; arguments are what their transformers class assumes for absent keys."""
    return (
        Key("vocab_size", int, "vocab_size"),
        Key("hidden_size", int, "hidden_size"),
        Key("intermediate_size", int, "intermediate_size"),
        Key("num_hidden_layers", int, "n_layers"),
        Key("num_attention_heads", int, "n_q_heads"),
        Key("num_key_value_heads", int, "n_kv_heads", default=n_kv_heads),
        Key("head_dim", int, "head_dim", default=head_dim_from_hidden_size),
        Key("max_position_embeddings", int, "max_positions", default=max_positions),
        Key("hidden_act", str, "activation", default="silu", spellings=ACTIVATIONS),
        Key("rms_norm_eps", float, "norm_eps", default=norm_eps),
        Key("initializer_range", float, "init_std", default=0.02),
        Key("tie_word_embeddings", bool, "tied_embeddings", default=False),
        Key("attention_dropout", float, "attn_dropout", default=0.0),
        RopeRow(),
    )
