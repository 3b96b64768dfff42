"""Tiny models of every variant of attention and block that the network has."""

from __future__ import annotations

import torch

from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

BASE = TINY.replace(max_positions=16, init_std=0.4)
LONGROPE = RopeConfig(
    "longrope",
    original_max_positions=9,
    short_factor=(1.0, 1.1, 1.2, 1.3),
    long_factor=(1.0, 3.0, 6.0, 9.0),
)
VARIANTS = {
    "grouped heads": BASE,
    "sliding window": BASE.replace(sliding_window=3),
    "soft cap": BASE.replace(attn_softcap=2.0),
    "slopes": BASE.replace(rope=None, alibi_scale=1.0),
    "slopes, sinks and a window": BASE.replace(alibi_scale=0.3, attn_sinks=True, sliding_window=(None, 3)),
    "norm of embeddings": BASE.replace(embedding_norm=True, norm="layer", norm_bias=True),
    "sinks and a window": BASE.replace(attn_sinks=True, sliding_window=(None, 3)),
    "q/k norm": BASE.replace(qk_norm="whole"),
    "dynamic rope past the trained length": BASE.replace(rope=RopeConfig("dynamic", factor=2.0)),
    "longrope past its switch": BASE.replace(rope=LONGROPE),
    "rope of each block": BASE.replace(rope=(RopeConfig(interleaved=True, rotary_dim=4), LONGROPE)),
    "no rope in one block": BASE.replace(rope=(None, RopeConfig("dynamic", factor=2.0))),
    "learned positions": BASE.replace(rope=None, learned_positions=True, position_offset=2, max_positions=24),
    "sandwich norms with an offset": BASE.replace(norm_placement="sandwich", norm_offset=1.0),
    "norms after the sum": BASE.replace(norm_placement="post"),
    "parallel branches": BASE.replace(parallel_residual=True, shared_norm=True, norm="layer", norm_bias=True),
    "q/k norm of each head": BASE.replace(qk_norm="per_head", norm="layer"),
    "gated output": BASE.replace(attn_output_gate=True, q_bias=True),
    "clipped": BASE.replace(qkv_clip=0.3),
    "scale and window of each block": BASE.replace(attn_scale=(0.2, 0.9), sliding_window=(None, 3)),
    "head bias": BASE.replace(head_bias=True, tied_embeddings=True, logit_softcap=2.0),
    "experts": BASE.replace(moe=MoEConfig(4, 2, 24)),
    "gated shared expert": BASE.replace(
        moe=MoEConfig(4, 2, 24, n_shared_experts=1, shared_intermediate_size=20, shared_gate=True)
    ),
}


def build(config: ReaLModelConfig) -> Transformer:
    """A model with random weights, in evaluation mode."""
    model = Transformer(config)
    model.init_weights(1)
    return model.eval()


def next_logits(model, text):
    """Logits [V] after a text, by the forward pass over all of it."""
    with torch.no_grad():
        return model(torch.tensor(text), torch.tensor([0, len(text)]))[-1]
