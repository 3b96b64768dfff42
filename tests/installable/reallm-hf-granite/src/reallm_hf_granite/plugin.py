"""The Granite architecture, as tables."""

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, MLP_BIAS, decoder_rows, same_as
from reallm.hf.tables import RECIPROCAL, ConfigTable, Key

REALLM_HOOK_API = "1.1"

GRANITE = HFFamily(
    names=("granite",),
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=same_as("n_q_heads"), max_positions=2048),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
            Key("mlp_bias", bool, MLP_BIAS, default=False),
            Key("attention_multiplier", float, "attn_scale", default=1.0),
            Key("embedding_multiplier", float, "embedding_multiplier", default=1.0),
            Key("residual_multiplier", float, "residual_multiplier", default=1.0),
            Key("logits_scaling", float, "logit_multiplier", default=1.0, conversion=RECIPROCAL),
        ),
        constants={"norm": "rms", "mlp": "gated"},
    ),
    weights=GATED_DECODER,
    description="Granite architecture: Granite 3 and 4, dense",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    return [GRANITE]
