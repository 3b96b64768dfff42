"""The gpt-oss architecture, as tables."""

from __future__ import annotations

from functools import partial

from reallm import Extra, HFFamily, MoEConfig, RopeConfig, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, AUX_LOSS, GATED_DECODER, MXFP4, decoder_rows, without
from reallm.hf.tables import ConfigTable, Key, LayerTypes, Nested, RopeRow, fused, sliding_except_every, transposed

REALLM_HOOK_API = "1.5"

YARN = RopeConfig(
    kind="yarn",
    theta=150000.0,
    factor=32.0,
    original_max_positions=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    truncate=False,
)
"""What transformers assumes where a file says nothing of RoPE."""

EXPERTS = "model.layers.{}.mlp.experts"

GPT_OSS = HFFamily(
    names=("gpt_oss",),
    model_type="gpt_oss",
    architectures=("GptOssForCausalLM",),
    critic_architectures=("GptOssForSequenceClassification",),
    config=ConfigTable(
        rows=(
            *without(
                decoder_rows(
                    n_kv_heads=8,
                    max_positions=131072,
                    norm_eps=1e-5,
                    head_dim=64,
                    rope=RopeRow(default_theta=150000.0, absent=YARN),
                ),
                "hidden_act",
            ),
            Key("attention_bias", bool, ATTENTION_BIAS, default=True),
            LayerTypes(default=sliding_except_every(2), window=128),
            Nested(
                "moe",
                partial(MoEConfig, router_bias=True, gate_bias=True, up_bias=True, down_bias=True),
                (
                    Key("num_local_experts", int, "n_experts", default=128, aliases=("num_experts",)),
                    Key("num_experts_per_tok", int, "top_k", default=4),
                    AUX_LOSS,
                ),
            ),
            Nested(
                "extra",
                Extra,
                (
                    Key("swiglu_alpha", float, "swiglu_alpha", default=1.702),
                    Key("swiglu_limit", float, "swiglu_limit", default=7.0),
                ),
            ),
            MXFP4,
        ),
        constants={"norm": "rms", "activation": "reallm_hf_gpt_oss.layers:ClampedSwiGLU", "attn_sinks": True},
        # the activation is written out; the last two repeat other keys
        irrelevant=frozenset({"hidden_act", "experts_per_token", "initial_context_length"}),
    ),
    weights=GATED_DECODER.updated(
        block={
            "attn.sinks": "model.layers.{}.self_attn.sinks",
            "mlp.gate": None,
            "mlp.up": None,
            "mlp.down": None,
            "mlp.router": "model.layers.{}.mlp.router",
            # the outputs of gate and up alternate
            ("mlp.experts.gate.weight", "mlp.experts.up.weight"): fused(
                f"{EXPERTS}.gate_up_proj", groups="expert_size", transposed=True
            ),
            ("mlp.experts.gate.bias", "mlp.experts.up.bias"): fused(
                f"{EXPERTS}.gate_up_proj_bias", groups="expert_size"
            ),
            "mlp.experts.down.weight": transposed(f"{EXPERTS}.down_proj"),
            "mlp.experts.down.bias": f"{EXPERTS}.down_proj_bias",
        }
    ),
    description="gpt-oss architecture: gpt-oss-20b, gpt-oss-120b",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    """The family of this package."""
    return [GPT_OSS]
