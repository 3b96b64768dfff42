"""The size of LFM2's MLPs, and which of its blocks have attention, in files as they are published."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

from reallm.hf.conversion.config import config_from_hf, config_to_hf
from reallm_hf_lfm2.mlp_size import adjusted_size
from reallm_hf_lfm2.plugin import LFM2

PUBLISHED: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 2048,
    "block_ff_dim": 12288, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256, "block_use_swiglu": True,
    "conv_L_cache": 3, "conv_bias": False, "conv_dim": 2048, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 2048, "max_position_embeddings": 128000, "norm_eps": 1e-05, "num_attention_heads": 32,
    "num_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rope_theta": 1000000.0, "vocab_size": 65536,
}  # fmt: skip
"""A file with the older names of sizes, of a model of 1.2 billion parameters."""


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"intermediate_size": 1000},
        {"block_ff_dim": 1000},
        {"intermediate_size": 1000, "block_auto_adjust_ff_dim": False},
        {"intermediate_size": 1000, "block_ffn_dim_multiplier": 1.3, "block_multiple_of": 7},
    ],
)
def test_mlps_have_the_size_of_those_of_transformers(keys: dict[str, Any]) -> None:
    assert adjusted_size(keys) == Lfm2MLP(Lfm2Config(hidden_size=8, **keys)).w1.out_features


def test_without_a_factor_two_thirds_are_not_rounded() -> None:
    assert adjusted_size({"intermediate_size": 1001, "block_ffn_dim_multiplier": None}) == 667


def test_a_file_with_older_names_is_read_and_written_as_it_is() -> None:
    config = config_from_hf(LFM2, PUBLISHED)
    assert config.intermediate_size == 8192
    assert [block for block, kind in enumerate(config.attentions) if kind == "standard"] == [2, 5, 8, 10, 12, 14]
    written = config_to_hf(LFM2, config, PUBLISHED)
    assert written["block_ff_dim"] == 12288
    resized = config_to_hf(LFM2, config.replace(intermediate_size=5000), PUBLISHED)
    assert config_from_hf(LFM2, resized).intermediate_size == 5000
