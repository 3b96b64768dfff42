"""The meaning of names in transformers: keys of `config.json`, and ends of tensor names.

Only names with the same meaning in every class that has them. All others are left to the author of a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STANDARD_KEYS: Mapping[str, tuple[str, ...]] = {
    "vocab_size": (),
    "hidden_size": ("n_embd", "d_model"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "head_dim": (),
    "max_position_embeddings": ("n_positions", "max_seq_len"),
    "hidden_act": ("hidden_activation", "activation_function", "activation"),
    "rms_norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "initializer_range": ("init_std",),
    "tie_word_embeddings": (),
    "attention_dropout": ("attn_pdrop",),
}
"""Keys of the rows of `decoder_rows`, in their order -> other names that some classes use."""

STANDARD_FIELDS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_q_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_positions",
    "hidden_act": "activation",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "init_std",
    "tie_word_embeddings": "tied_embeddings",
    "attention_dropout": "attn_dropout",
}
"""Keys of the rows of `decoder_rows` -> fields of `ReaLModelConfig`."""


@dataclass(frozen=True)
class FieldMeaning:
    """The row of a key: its field, the type of its values, and their conversion."""

    field: str
    kind: str = "float"
    nullable: bool = False
    conversion: str = ""


KEYS: Mapping[str, FieldMeaning] = {
    "attention_multiplier": FieldMeaning("attn_scale"),
    "attn_logit_softcapping": FieldMeaning("attn_softcap", nullable=True),
    "clip_qkv": FieldMeaning("qkv_clip", nullable=True),
    "embd_pdrop": FieldMeaning("embedding_dropout"),
    "embedding_dropout": FieldMeaning("embedding_dropout"),
    "embedding_multiplier": FieldMeaning("embedding_multiplier"),
    "final_logit_softcapping": FieldMeaning("logit_softcap", nullable=True),
    "logit_scale": FieldMeaning("logit_multiplier"),
    "logits_scaling": FieldMeaning("logit_multiplier", conversion="RECIPROCAL"),
    "query_pre_attn_scalar": FieldMeaning("attn_scale", conversion="INVERSE_SQUARE_ROOT"),
    "resid_pdrop": FieldMeaning("residual_dropout"),
    "residual_dropout": FieldMeaning("residual_dropout"),
    "residual_multiplier": FieldMeaning("residual_multiplier"),
    "use_parallel_residual": FieldMeaning("parallel_residual", "bool"),
}

EXPERT_KEYS: Mapping[str, FieldMeaning] = {
    "num_local_experts": FieldMeaning("n_experts", "int"),
    "num_experts": FieldMeaning("n_experts", "int"),
    "num_experts_per_tok": FieldMeaning("top_k", "int"),
    "moe_intermediate_size": FieldMeaning("intermediate_size", "int"),
    "norm_topk_prob": FieldMeaning("normalize_top_k", "bool"),
    "router_jitter_noise": FieldMeaning("jitter"),
}
"""Keys -> fields of `MoEConfig`."""

AUX_LOSS_KEYS = ("router_aux_loss_coef", "output_router_logits")

OUTER_MODULES: Mapping[str, tuple[str, ...]] = {
    "tokens": ("embed_tokens", "wte", "embed_in", "word_embeddings"),
    "positions": ("wpe", "embed_positions"),
    "norm": ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm"),
    "out": ("lm_head", "embed_out"),
}
"""Our modules outside of blocks -> ends of their names in checkpoints."""

BLOCK_MODULES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("attn.q",): ("self_attn.q_proj", "attention.q_proj", "attn.q_proj"),
    ("attn.k",): ("self_attn.k_proj", "attention.k_proj", "attn.k_proj"),
    ("attn.v",): ("self_attn.v_proj", "attention.v_proj", "attn.v_proj"),
    ("attn.q", "attn.k", "attn.v"): ("qkv_proj", "attn.c_attn", "query_key_value"),
    ("attn.q_norm",): ("q_norm", "q_layernorm", "query_layernorm"),
    ("attn.k_norm",): ("k_norm", "k_layernorm", "key_layernorm"),
    ("attn.o",): (
        "self_attn.o_proj", "attention.o_proj", "attn.o_proj", "self_attn.out_proj", "attn.out_proj", "self_attn.dense",
        "attention.dense", "self_attention.dense", "attn.c_proj",
    ),
    ("mlp.gate",): ("mlp.gate_proj", "feed_forward.gate_proj"),
    ("mlp.up",): ("mlp.up_proj", "feed_forward.up_proj", "fc1", "mlp.c_fc", "mlp.dense_h_to_4h", "mlp.fc_in"),
    ("mlp.gate", "mlp.up"): ("mlp.gate_up_proj",),
    ("mlp.down",): (
        "mlp.down_proj", "feed_forward.down_proj", "fc2", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc_out",
    ),
    ("mlp.router",): ("mlp.gate", "block_sparse_moe.gate", "block_sparse_moe.router.layer"),
    ("mlp.experts.gate",): ("mlp.experts.{each}.gate_proj", "block_sparse_moe.experts.{each}.w1"),
    ("mlp.experts.up",): ("mlp.experts.{each}.up_proj", "block_sparse_moe.experts.{each}.w3"),
    ("mlp.experts.down",): (
        "mlp.experts.{each}.down_proj", "block_sparse_moe.experts.{each}.w2", "block_sparse_moe.output_linear",
    ),
    ("mlp.experts.gate", "mlp.experts.up"): ("block_sparse_moe.input_linear",),
}  # fmt: skip
"""Our modules within a block -> ends of their names. Several modules in one tensor are in its order."""

INTERLEAVED_QKV = frozenset({"query_key_value"})
"""Fused projections whose tensor interleaves queries, keys and values by head."""

BEFORE_ATTENTION = ("input_layernorm", "ln_1", "self_attn_layer_norm", "attention_layernorm")
BEFORE_MLP = ("post_attention_layernorm", "ln_2", "final_layer_norm", "feedforward_layernorm")

NORMS: tuple[tuple[str, Mapping[str, tuple[str, ...]]], ...] = (
    ("pre", {"attn_norm": BEFORE_ATTENTION, "mlp_norm": BEFORE_MLP}),
    ("shared", {"attn_norm": BEFORE_ATTENTION}),
    ("branch", {"attn_post_norm": ("post_attention_layernorm",), "mlp_post_norm": ("post_feedforward_layernorm",)}),
    (
        "sandwich",
        {
            "attn_norm": ("input_layernorm",),
            "attn_post_norm": ("post_attention_layernorm",),
            "mlp_norm": ("pre_feedforward_layernorm",),
            "mlp_post_norm": ("post_feedforward_layernorm",),
        },
    ),
    (
        "sandwich",
        {
            "attn_norm": ("input_layernorm",),
            "attn_post_norm": ("post_self_attn_layernorm",),
            "mlp_norm": ("post_attention_layernorm",),
            "mlp_post_norm": ("post_mlp_layernorm",),
        },
    ),
)
"""Placement of norms in a block -> their names, if a block has exactly these. `shared`: one norm for both branches."""

BIASES: Mapping[str, str] = {
    "attn.q": "q_bias",
    "attn.k": "k_bias",
    "attn.v": "v_bias",
    "attn.o": "o_bias",
    "mlp.gate": "gate_bias",
    "mlp.up": "up_bias",
    "mlp.down": "down_bias",
    "out": "head_bias",
}
"""Our modules -> the field for their bias; for norms it is `norm_bias`."""

OLDER_ROPE_KEYS = {"theta_key": ("rotary_emb_base",), "partial_key": ("rotary_pct",)}
"""Arguments of `RopeRow` -> keys that some classes read in older files."""
