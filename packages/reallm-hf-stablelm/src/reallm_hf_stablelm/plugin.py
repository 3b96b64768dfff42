"""The StableLM architecture, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import GATED_DECODER, QKV_BIAS, decoder_rows
from reallm.hf.tables import Allowed, ConfigTable, Key, RopeRow

REALLM_HOOK_API = "1.5"

STABLELM = HFFamily(
    names=("stablelm",),
    model_type="stablelm",
    architectures=("StableLmForCausalLM",),
    critic_architectures=("StableLmForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=32,
                max_positions=4096,
                norm_eps=1e-5,
                norm_eps_key="layer_norm_eps",
                head_dim_key=None,
                rope=RopeRow(partial=0.25),
            ),
            Key("use_qkv_bias", bool, QKV_BIAS, default=False),
            Key("use_parallel_residual", bool, ("parallel_residual", "shared_norm"), default=False),
            Key("qk_layernorm", bool, "qk_norm", default=None, spellings={True: "per_head", False: None}),
        ),
        constants={"norm": "layer", "mlp": "gated", "norm_bias": True},
        restricted={"hidden_dropout": Allowed((0.0,), "dropout behind the MLP alone is not supported")},
    ),
    weights=GATED_DECODER.updated(
        block={
            "attn.q_norm": "model.layers.{}.self_attn.q_layernorm.norms.{each}",
            "attn.k_norm": "model.layers.{}.self_attn.k_layernorm.norms.{each}",
        }
    ),
    description="StableLM architecture: StableLM-3B-4E1T, StableLM Zephyr 3B, StableLM 2 1.6B and 12B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [STABLELM]
