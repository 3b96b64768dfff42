"""The Cohere architectures, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, QK_NORMS, decoder_rows, same_as
from reallm.hf.tables import (
    ConfigTable,
    InBlocks,
    Key,
    LayerTypes,
    RopeRow,
    WindowedBlocks,
    sliding_except_every,
)

REALLM_HOOK_API = "1.5"

LATER_ROWS = (
    Key("attention_bias", bool, ATTENTION_BIAS, default=False),
    Key("logit_scale", float, "logit_multiplier", default=0.0625),
)
CONSTANTS = {"norm": "layer", "mlp": "gated", "parallel_residual": True, "shared_norm": True}
ONE_NORM = GATED_DECODER.updated(block={"mlp_norm": None})

COHERE = HFFamily(
    names=("cohere",),
    model_type="cohere",
    architectures=("CohereForCausalLM",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=same_as("n_q_heads"),
                max_positions=8192,
                norm_eps=1e-5,
                norm_eps_key="layer_norm_eps",
                tied=True,
                rope=RopeRow(default_theta=5e5, interleaved=True),
            ),
            *LATER_ROWS,
            Key("use_qk_norm", bool, "qk_norm", default=None, spellings={True: "per_head", False: None}),
        ),
        constants=CONSTANTS,
    ),
    weights=ONE_NORM.updated(block=QK_NORMS),
    description="Cohere architecture: Command R and R+, Aya 23",
)

COHERE2 = HFFamily(
    names=("cohere2",),
    model_type="cohere2",
    architectures=("Cohere2ForCausalLM",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=same_as("n_q_heads"),
                max_positions=8192,
                norm_eps=1e-5,
                norm_eps_key="layer_norm_eps",
                tied=True,
                rope=LayerTypes(
                    default=sliding_except_every(4, "sliding_window_pattern"),
                    window=4096,
                    older_keys=("sliding_window_pattern",),
                ),
            ),
            InBlocks(RopeRow(interleaved=True), WindowedBlocks()),  # full attention has no RoPE
            *LATER_ROWS,
        ),
        constants=CONSTANTS,
    ),
    weights=ONE_NORM,
    description="Cohere 2 architecture, with a sliding window and RoPE in three of four layers: Command R7B and A",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The two families of this package."""
    return [COHERE, COHERE2]
