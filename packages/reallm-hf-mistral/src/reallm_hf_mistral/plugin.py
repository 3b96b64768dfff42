"""The Mistral architecture, dense and with experts, as tables."""

from __future__ import annotations

from reallm import HFFamily, MoEConfig, hookimpl
from reallm.hf.standard import AUX_LOSS, GATED_DECODER, decoder_rows
from reallm.hf.tables import ConfigTable, Key, Nested, RopeRow

REALLM_HOOK_API = "1.1"

MISTRAL = HFFamily(
    names=("mistral",),
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    critic_architectures=("MistralForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=8, max_positions=131072),
            # An absent key means a window of 4096 tokens, null means none.
            Key("sliding_window", int, "sliding_window", default=4096, nullable=True),
        ),
        constants={"norm": "rms", "mlp": "gated"},
    ),
    weights=GATED_DECODER,
    description="Mistral architecture: Mistral 7B, Mistral Nemo and models derived from them",
)

MIXTRAL = HFFamily(
    names=("mixtral",),
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    critic_architectures=("MixtralForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=8, max_positions=131072, norm_eps=1e-5, rope=RopeRow(default_theta=1e6)),
            Key("sliding_window", int, "sliding_window", default=None, nullable=True),
            Nested(
                "moe",
                MoEConfig,
                (
                    Key("num_local_experts", int, "n_experts", default=8),
                    Key("num_experts_per_tok", int, "top_k", default=2),
                    Key("router_jitter_noise", float, "jitter", default=0.0),
                    AUX_LOSS,
                ),
            ),
        ),
        constants={"norm": "rms", "mlp": "gated"},
    ),
    weights=GATED_DECODER.updated(
        block={
            "mlp.gate": None,
            "mlp.up": None,
            "mlp.down": None,
            "mlp.router": "model.layers.{}.block_sparse_moe.gate",
            "mlp.experts.gate": "model.layers.{}.block_sparse_moe.experts.{each}.w1",
            "mlp.experts.down": "model.layers.{}.block_sparse_moe.experts.{each}.w2",
            "mlp.experts.up": "model.layers.{}.block_sparse_moe.experts.{each}.w3",
        }
    ),
    description="Mixtral architecture: mixtures of experts such as Mixtral 8x7B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The two families of this package."""
    return [MISTRAL, MIXTRAL]
