"""The Qwen architectures, dense and with experts, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm import HFFamily, MoEConfig, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, QK_NORMS, decoder_rows
from reallm.hf.tables import ConfigTable, Key, LayerTypes, Nested, always_sliding
from reallm_hf_qwen.experts import EXPERTS, expert_rows
from reallm_hf_qwen.qwen3_next import QWEN3_NEXT

REALLM_HOOK_API = "1.5"


def _last_layers_slide(raw: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """The types of layers where a file does not list them: a window from `max_window_layers` on."""
    n_full = raw.get("max_window_layers", 28)
    return ["full_attention" if block < n_full else "sliding_attention" for block in range(known["n_layers"])]


WINDOWS = LayerTypes(
    default=_last_layers_slide, window=4096, enabled_key="use_sliding_window", older_keys=("max_window_layers",)
)


QWEN2 = HFFamily(
    names=("qwen2",),
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    critic_architectures=("Qwen2ForSequenceClassification",),
    config=ConfigTable(
        rows=(*decoder_rows(n_kv_heads=32, max_positions=32768), WINDOWS),
        constants={"norm": "rms", "mlp": "gated", "q_bias": True, "k_bias": True, "v_bias": True},
    ),
    weights=GATED_DECODER,
    description="Qwen2 architecture: Qwen 1.5, 2 and 2.5, QwQ, DeepSeek-R1-Distill-Qwen",
)

QWEN3 = HFFamily(
    names=("qwen3",),
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    critic_architectures=("Qwen3ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=32, max_positions=32768, head_dim=128),
            WINDOWS,
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
        ),
        constants={"norm": "rms", "mlp": "gated", "qk_norm": "head"},
    ),
    weights=GATED_DECODER.updated(block=QK_NORMS),
    description="Qwen3 architecture, dense",
)

QWEN3_MOE = HFFamily(
    names=("qwen3_moe",),
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    critic_architectures=("Qwen3MoeForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(n_kv_heads=4, max_positions=32768),
            LayerTypes(default=always_sliding, window=4096, enabled_key="use_sliding_window", types_key=None),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
            Nested("moe", MoEConfig, expert_rows(128, 8, 768, normalized=False)),
        ),
        constants={"norm": "rms", "mlp": "gated", "qk_norm": "head"},
        irrelevant=frozenset({"max_window_layers"}),
    ),
    weights=GATED_DECODER.updated(block={**QK_NORMS, **EXPERTS}),
    description="Qwen3 architecture with experts: Qwen3-30B-A3B, Qwen3-235B-A22B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The four families of this package."""
    return [QWEN2, QWEN3, QWEN3_MOE, QWEN3_NEXT]
