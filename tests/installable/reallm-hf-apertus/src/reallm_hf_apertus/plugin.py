"""The Apertus architecture, as tables."""

from reallm import HFFamily, RopeConfig, hookimpl
from reallm.hf.standard import ATTENTION_BIAS, GATED_DECODER, QK_NORMS, decoder_rows, same_as, without
from reallm.hf.tables import ConfigTable, Key, RopeRow

REALLM_HOOK_API = "1.5"

XIELU = "reallm_hf_apertus.layers:XIELU"

LLAMA3_ROPE = RopeConfig(
    kind="llama3",
    theta=12e6,
    factor=8.0,
    original_max_positions=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
"""What transformers assumes where a file says nothing of RoPE."""

APERTUS = HFFamily(
    names=("apertus",),
    model_type="apertus",
    architectures=("ApertusForCausalLM",),
    config=ConfigTable(
        rows=(
            *without(
                decoder_rows(
                    n_kv_heads=same_as("n_q_heads"),
                    max_positions=65536,
                    norm_eps=1e-5,
                    rope=RopeRow(default_theta=12e6, absent=LLAMA3_ROPE),
                ),
                "hidden_act",
            ),
            Key("hidden_act", str, "activation", default=XIELU, spellings={"xielu": XIELU}),
            Key("attention_bias", bool, ATTENTION_BIAS, default=False),
        ),
        constants={"norm": "rms", "mlp": "plain", "qk_norm": "head"},
    ),
    weights=GATED_DECODER.updated(
        block={
            **QK_NORMS,
            "attn_norm": "model.layers.{}.attention_layernorm",
            "mlp_norm": "model.layers.{}.feedforward_layernorm",
            "mlp.gate": None,
            "mlp.act.alpha_p": "model.layers.{}.mlp.act_fn.alpha_p",
            "mlp.act.alpha_n": "model.layers.{}.mlp.act_fn.alpha_n",
            "mlp.act.beta": "model.layers.{}.mlp.act_fn.beta",
            "mlp.act.eps": "model.layers.{}.mlp.act_fn.eps",
        }
    ),
    description="Apertus architecture: Apertus 8B and 70B",
)


@hookimpl
def reallm_hf_families() -> list[HFFamily]:
    return [APERTUS]
