"""The Llama architecture, as tables."""

from __future__ import annotations

from reallm import HFFamily, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, MLP_BIAS, decoder_rows, same_as
from reallm.hf.tables import ConfigTable, Key

LLAMA = HFFamily(
    names=("llama", "codellama", "deepseek"),
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    critic_architectures=("LlamaForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=same_as("n_q_heads"), max_positions=2048),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
            Key("mlp_bias", bool, MLP_BIAS, default=False),
        ),
        constants={"norm": "rms", "mlp": "gated"},
        irrelevant=frozenset({"is_llama_config"}),  # a note in SmolLM2's files
    ),
    weights=GATED_DECODER,
    description="Llama architecture: Llama 1-3.2, Code Llama, DeepSeek LLM and Coder, TinyLlama, SmolLM2",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [LLAMA]
