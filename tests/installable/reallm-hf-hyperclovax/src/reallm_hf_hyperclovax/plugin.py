"""The HyperCLOVA X architecture, as tables."""

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, MLP_BIAS, decoder_rows, same_as
from reallm.hf.tables import ConfigTable, Key

REALLM_HOOK_API = "1.1"

HYPERCLOVAX = HFFamily(
    names=("hyperclovax",),
    model_type="hyperclovax",
    architectures=("HyperCLOVAXForCausalLM",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=same_as("n_q_heads"), max_positions=2048),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
            Key("mlp_bias", bool, MLP_BIAS, default=False),
            Key("attention_multiplier", float, "attn_scale", default=lambda known: known["head_dim"] ** -0.5),
            Key("embedding_multiplier", float, "embedding_multiplier", default=1.0),
            Key("residual_multiplier", float, "residual_multiplier", default=1.0),
            Key("logits_scaling", float, "logit_multiplier", default=1.0),
            Key(
                "use_post_norm", bool, "norm_placement", default="sandwich", spellings={True: "sandwich", False: "pre"}
            ),
        ),
        constants={"norm": "rms", "mlp": "gated"},
    ),
    weights=GATED_DECODER.updated(
        block={"attn_post_norm": "model.layers.{}.post_norm1", "mlp_post_norm": "model.layers.{}.post_norm2"}
    ),
    description="HyperCLOVA X architecture: HyperCLOVA X SEED Think 14B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    return [HYPERCLOVAX]
