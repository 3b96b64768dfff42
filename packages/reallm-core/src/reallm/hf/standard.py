"""Building blocks for a family's tables, shared by most decoder-only families of HuggingFace.

A family uses these, and adds or replaces entries where it differs. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.errors import ConfigError, did_you_mean
from reallm.hf.tables.fields import Computed, Derived, FieldRow, FieldsSoFar, Key
from reallm.hf.tables.rope import RopeRow
from reallm.hf.tables.weights import WeightTable

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
    **{name: name for name in ("gelu_10", "relu", "relu2", "relu6", "leaky_relu", "mish", "hardswish", "laplace")},
    **{name: name for name in ("sigmoid", "tanh", "linear")},
}
"""transformers' names of activations -> ours. An activation with parameters needs a class in the family."""

QKV_BIAS = ("q_bias", "k_bias", "v_bias")
ATTENTION_BIAS = (*QKV_BIAS, "o_bias")
MLP_BIAS = ("gate_bias", "up_bias", "down_bias")
"""Fields that one key sets at once, `Key("attention_bias", bool, ATTENTION_BIAS, default=False)`."""

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

QK_NORMS = {"attn.q_norm": "model.layers.{}.self_attn.q_norm", "attn.k_norm": "model.layers.{}.self_attn.k_norm"}
"""Names of the norms of queries and keys, for `GATED_DECODER.updated(block=QK_NORMS)`."""


def aux_loss(default: float) -> Computed:
    """The row for the load-balancing loss, in a `Nested` row for `MoEConfig`.

    `default` is the coefficient of a file without `router_aux_loss_coef`; most classes have 0.001, as in `AUX_LOSS`.
    """
    return Computed(
        keys=("router_aux_loss_coef", "output_router_logits"),
        fields=("aux_loss_coef",),
        # transformers adds the loss only if it outputs the router's logits
        reading=lambda raw, known: {
            "aux_loss_coef": raw.get("router_aux_loss_coef", default) if raw.get("output_router_logits") else 0.0
        },
        writing=lambda moe, base: {
            "router_aux_loss_coef": moe.aux_loss_coef or base.get("router_aux_loss_coef", default),
            "output_router_logits": moe.aux_loss_coef > 0,
        },
    )


AUX_LOSS = aux_loss(0.001)
"""The row for the load-balancing loss with the default of most classes; see `aux_loss`."""


def _check_mxfp4(raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
    quantization = raw.get("quantization_config") or {}
    method = quantization.get("quant_method")
    if quantization and method != "mxfp4":
        raise ConfigError(
            f"unsupported quantization_config.quant_method={method!r}; only mxfp4 can be read: dequantize it"
        )
    return {}


MXFP4 = Computed(("quantization_config",), (), _check_mxfp4, lambda config, base: {})
"""The row of a family whose checkpoints may be stored in MXFP4, which is dequantized where tensors are read."""


def same_as(name: str) -> Any:
    """A default: the value of another field, `same_as("n_q_heads")`."""
    return lambda known: known[name]


def head_dim_from_hidden_size(known: FieldsSoFar) -> int:
    """A default: the hidden size divided by the number of heads."""
    return int(known["hidden_size"] // known["n_q_heads"])


def decoder_rows(
    *,
    n_kv_heads: Any,
    max_positions: int,
    n_kv_heads_key: str | None = "num_key_value_heads",
    norm_eps: float = 1e-6,
    norm_eps_key: str = "rms_norm_eps",
    head_dim: Any = head_dim_from_hidden_size,
    head_dim_key: str | None = "head_dim",
    activation: str = "silu",
    activation_key: str = "hidden_act",
    tied: bool = False,
    attn_dropout: float = 0.0,
    rope: FieldRow | None = None,
) -> tuple[FieldRow, ...]:
    """Rows that nearly all families share: sizes, activation, norm epsilon, dropout, tied embeddings, RoPE.

    Values are the defaults of the transformers class, for files without the key.

    Args:
        n_kv_heads: a value, or a function of the fields of earlier rows such as `same_as("n_q_heads")`.
        max_positions: default of `max_position_embeddings`.
        n_kv_heads_key: key of `n_kv_heads`; None if there is none; `n_kv_heads` is then a function.
        norm_eps: default of `norm_eps_key`.
        norm_eps_key: key of the norm epsilon, such as `layer_norm_eps`.
        head_dim: a value, or a function of the fields of earlier rows.
        head_dim_key: key of `head_dim`; None if there is none; `head_dim` is then a function.
        activation: default activation in transformers' spelling, a key of `ACTIVATIONS`.
        activation_key: key of the activation, such as `hidden_activation`.
        tied: default of `tie_word_embeddings`.
        attn_dropout: default of `attention_dropout`.
        rope: the last row; None: `RopeRow()`.

    Raises:
        ConfigError: the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        near = did_you_mean(activation, ACTIVATIONS)
        raise ConfigError(f"activation='{activation}' is not one of {', '.join(ACTIVATIONS)}{near}")
    return (
        Key("vocab_size", int, "vocab_size"),
        Key("hidden_size", int, "hidden_size"),
        Key("intermediate_size", int, "intermediate_size"),
        Key("num_hidden_layers", int, "n_layers"),
        Key("num_attention_heads", int, "n_q_heads"),
        _size_row(n_kv_heads_key, "n_kv_heads", n_kv_heads),
        _size_row(head_dim_key, "head_dim", head_dim),
        Key("max_position_embeddings", int, "max_positions", default=max_positions),
        Key(activation_key, str, "activation", default=ACTIVATIONS[activation], spellings=ACTIVATIONS),
        Key(norm_eps_key, float, "norm_eps", default=norm_eps),
        Key("initializer_range", float, "init_std", default=0.02),
        Key("tie_word_embeddings", bool, "tied_embeddings", default=tied),
        Key("attention_dropout", float, "attn_dropout", default=attn_dropout),
        rope or RopeRow(),
    )


def _size_row(key: str | None, field: str, value: Any) -> FieldRow:
    return Derived(field, value) if key is None else Key(key, int, field, default=value)


def without(rows: tuple[FieldRow, ...], *keys: str) -> tuple[FieldRow, ...]:
    """`rows` without the rows of some keys, for a family that replaces them.

    Raises:
        ValueError: no row has one of the keys.
    """
    for key in keys:
        if not any(key in row.keys for row in rows):
            raise ValueError(f"no row has the key '{key}'")
    return tuple(row for row in rows if not set(keys) & set(row.keys))
