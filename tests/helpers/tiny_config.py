"""The configuration of a tiny model."""

from __future__ import annotations

from reallm.model.config import ReaLModelConfig

TINY = ReaLModelConfig(
    n_layers=2, hidden_size=32, n_q_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=48, vocab_size=50,
    max_positions=64,
)  # fmt: skip
