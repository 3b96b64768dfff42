"""The Mistral architecture, as tables."""

from __future__ import annotations

from reallm.hf.family import HFFamily
from reallm.hf.standard import GATED_DECODER, decoder_rows
from reallm.hf.tables import ConfigTable, Key
from reallm.hookspecs import hookimpl

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


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [MISTRAL]
