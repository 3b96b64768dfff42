"""The EXAONE 4 architecture, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reallm import HFFamily, hookimpl
from reallm.errors import ConfigError
from reallm.hf.standard import GATED_DECODER, QK_NORMS, decoder_rows
from reallm.hf.tables import ConfigTable, InBlocks, LayerTypes, RopeRow, WindowedBlocks, sliding_except_every

REALLM_HOOK_API = "1.5"

WINDOW = 4096


class RotatedBlocks(WindowedBlocks):
    """The blocks with RoPE: those with a window, or all where `sliding_window` is null."""

    def read(self, raw: Mapping[str, Any], known: Mapping[str, Any]) -> Sequence[bool]:
        """See `Blocks.read`."""
        window = raw.get("sliding_window", WINDOW)
        if known["sliding_window"] is None and window is not None:
            raise ConfigError(
                f"layer_types has no 'sliding_attention' beside sliding_window={window!r}, so that no layer would "
                "have RoPE, which is not supported; set sliding_window to null if all layers have it"
            )
        return super().read(raw, known)


EXAONE4 = HFFamily(
    names=("exaone4",),
    model_type="exaone4",
    architectures=("Exaone4ForCausalLM",),
    critic_architectures=("Exaone4ForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *decoder_rows(
                n_kv_heads=32,
                max_positions=2048,
                norm_eps=1e-5,
                rope=LayerTypes(
                    default=sliding_except_every(4, "sliding_window_pattern"),
                    window=WINDOW,
                    older_keys=("sliding_window_pattern",),
                ),
            ),
            InBlocks(RopeRow(), RotatedBlocks(or_all=True)),
        ),
        constants={"norm": "rms", "mlp": "gated", "norm_placement": "branch", "qk_norm": "head"},
    ),
    weights=GATED_DECODER.updated(
        block={
            **QK_NORMS,
            "attn_norm": None,
            "mlp_norm": None,
            "attn_post_norm": "model.layers.{}.post_attention_layernorm",
            "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
        }
    ),
    description="EXAONE 4 architecture, with a sliding window and RoPE in three of four layers: EXAONE-4.0-32B, 1.2B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The one family of this package."""
    return [EXAONE4]
