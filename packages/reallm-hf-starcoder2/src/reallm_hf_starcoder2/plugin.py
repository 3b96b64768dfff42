"""The StarCoder2 architecture, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, decoder_rows, without
from reallm.hf.tables import ConfigTable, Key

REALLM_HOOK_API = "1.5"

STARCODER2 = HFFamily(
    names=("starcoder2",),
    model_type="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    critic_architectures=("Starcoder2ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            Key("initializer_range", float, "init_std", default=0.018042),
            *without(
                decoder_rows(
                    n_kv_heads=2,
                    max_positions=4096,
                    norm_eps=1e-5,
                    norm_eps_key="norm_epsilon",
                    activation="gelu_pytorch_tanh",
                    tied=True,
                ),
                "initializer_range",
            ),
            Key("use_bias", bool, (*ATTENTION_BIAS, "up_bias", "down_bias"), default=True),
            Key("residual_dropout", float, "residual_dropout", default=0.0),
            Key("embedding_dropout", float, "embedding_dropout", default=0.0),
            Key("sliding_window", int, "sliding_window", default=None, nullable=True),
        ),
        constants={"norm": "layer", "mlp": "plain", "norm_bias": True},
    ),
    weights=GATED_DECODER.updated(
        block={"mlp.gate": None, "mlp.up": "model.layers.{}.mlp.c_fc", "mlp.down": "model.layers.{}.mlp.c_proj"}
    ),
    description="StarCoder2 architecture: StarCoder2-3B, 7B and 15B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [STARCODER2]
