"""The Phi-3 architecture, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import GATED_DECODER, decoder_rows, same_as
from reallm.hf.tables import ConfigTable, Key, RopeRow, fused

REALLM_HOOK_API = "1.1"

PHI3 = HFFamily(
    names=("phi3",),
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    critic_architectures=("Phi3ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=same_as("n_q_heads"),
                max_positions=4096,
                norm_eps=1e-5,
                rope=RopeRow(
                    partial=1.0,
                    kinds={"su": "longrope", "yarn": "longrope"},
                    original_key="original_max_position_embeddings",
                ),
            ),
            Key("sliding_window", int, "sliding_window", default=None, nullable=True),
            Key("resid_pdrop", float, "residual_dropout", default=0.0),
            Key("embd_pdrop", float, "embedding_dropout", default=0.0),
        ),
        constants={"norm": "rms", "mlp": "gated"},
    ),
    weights=GATED_DECODER.updated(
        block={
            ("attn.q", "attn.k", "attn.v"): fused("model.layers.{}.self_attn.qkv_proj"),
            ("mlp.gate", "mlp.up"): fused("model.layers.{}.mlp.gate_up_proj"),
        }
    ),
    description="Phi-3 architecture: Phi-3 and 3.5 mini, Phi-4, Phi-4-mini",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [PHI3]
