"""Tiny architectures that differ in one setting each, as the `config.json` that transformers would write."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.1,  # larger than usual, so that every part has a visible effect
}
GPT2_SIZES = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA3 = {
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}


def _old(kind: str, key: str = "rope_type", theta: float = 500.0, **parameters: Any) -> dict[str, Any]:
    """RoPE as written before transformers 5."""
    return {"rope_theta": theta, "rope_scaling": {key: kind, **parameters}}


def _new(kind: str, theta: float = 500.0, **parameters: Any) -> dict[str, Any]:
    """RoPE as written by transformers 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


def _yarn(spelling: Any, **parameters: Any) -> dict[str, Any]:
    """YaRN, with sizes for which each parameter changes some frequency."""
    return {**spelling("yarn", theta=50.0, **{**YARN, **parameters}), "max_position_embeddings": 128}


def _last_slide(window: int) -> dict[str, Any]:
    """Qwen's sliding window on all blocks except the first."""
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}


GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 3}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
"""With `original_max_position_embeddings` 16, the long factors apply beyond 16 tokens."""

GRID: dict[str, tuple[str, dict[str, Any]]] = {
    "gqa": ("llama", {}),
    "mqa": ("llama", {"num_key_value_heads": 1}),
    "mha": ("llama", {"num_key_value_heads": 4}),
    "kv-heads-absent": ("llama", {"num_key_value_heads": None}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "attention-bias": ("llama", {"attention_bias": True}),
    "mlp-bias": ("llama", {"mlp_bias": True}),
    "all-biases-tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "wide-heads": ("llama", {"head_dim": 16}),
    "narrow-heads": ("llama", {"head_dim": 4}),
    "eps": ("llama", {"rms_norm_eps": 1e-3}),
    "one-layer": ("llama", {"num_hidden_layers": 1}),
    **{
        f"act-{name}": ("llama", {"hidden_act": name})
        for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "swish")
    },
    "rope-theta-old": ("llama", {"rope_theta": 500}),
    "rope-default-new": ("llama", _new("default")),
    "rope-linear-oldest": ("llama", _old("linear", key="type", factor=2.0)),
    "rope-linear-old": ("llama", _old("linear", factor=2)),
    "rope-linear-new": ("llama", _new("linear", factor=2.0)),
    "rope-dynamic-old": ("llama", {**_old("dynamic", factor=2.0), "max_position_embeddings": 16}),
    "rope-dynamic-new": ("llama", {**_new("dynamic", factor=3.0), "max_position_embeddings": 16}),
    "rope-llama3-old": ("llama", _old("llama3", **LLAMA3)),
    "rope-llama3-new": ("llama", _new("llama3", **LLAMA3)),
    "rope-yarn-old": ("llama", _yarn(_old)),
    "rope-yarn-new": ("llama", _yarn(_new)),
    "rope-yarn-no-original": ("llama", _old("yarn", key="type", factor=2.0)),
    "rope-yarn-no-factor": ("llama", _old("yarn", original_max_position_embeddings=16, factor=None)),
    "rope-yarn-betas": ("llama", _yarn(_new, beta_fast=4.0, beta_slow=0.5)),
    "rope-yarn-attention-factor": ("llama", _yarn(_new, attention_factor=1.25)),
    "rope-yarn-mscale": ("llama", _yarn(_new, mscale=0.7, mscale_all_dim=1.1)),
    "rope-yarn-mscale-alone": ("llama", _yarn(_new, mscale=0.7)),
    "rope-yarn-untruncated": ("llama", _yarn(_new, truncate=False)),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "mistral-wide-window": ("mistral", {"sliding_window": 4096}),
    "mistral-wide-heads-tied": ("mistral", {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 3}),
    "mistral-yarn": ("mistral", {**_yarn(_old), "sliding_window": 7}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral-window": ("mixtral", {"num_local_experts": 4, "sliding_window": 5}),
    "mixtral-three-of-eight": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 16}),
    "qwen2": ("qwen2", {"num_hidden_layers": 3}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"num_hidden_layers": 3, **_last_slide(5)}),
    "qwen3-bias": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3-moe": ("qwen3_moe", {**EXPERTS, "num_hidden_layers": 3}),
    "qwen3-moe-normalized": ("qwen3_moe", {**EXPERTS, "num_hidden_layers": 3, "norm_topk_prob": True}),
    "qwen3-moe-dense-layer": ("qwen3_moe", {**EXPERTS, "num_hidden_layers": 3, "mlp_only_layers": [0]}),
    "qwen3-moe-sparse-step": (
        "qwen3_moe",
        {**EXPERTS, "num_hidden_layers": 4, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 4},
    ),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma-first-release": ("gemma", {"hidden_act": "gelu"}),
    "gemma-untied-bias": ("gemma", {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma2": ("gemma2", {**GEMMA2, "sliding_window": 5}),
    "gemma2-no-caps": (
        "gemma2",
        {**GEMMA2, "sliding_window": 5, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma2-narrow-window": ("gemma2", {**GEMMA2, "sliding_window": 2}),
    "gemma3-seven-layers": ("gemma3_text", {**GEMMA3, "num_hidden_layers": 7}),
    "gemma3": ("gemma3_text", {**GEMMA3, "layer_types": ["full_attention", "sliding_attention"]}),
    "gemma3-ropes": (
        "gemma3_text",
        {
            **GEMMA3,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2-narrow-relu": ("gpt2", {"n_inner": 40, "activation_function": "relu"}),
    "phi3": ("phi3", {}),
    "phi3-partial": ("phi3", {"partial_rotary_factor": 0.5}),
    "phi3-window": ("phi3", {"sliding_window": 5}),
    "phi3-longrope": ("phi3", {"original_max_position_embeddings": 16, "rope_scaling": LONGROPE}),
    "phi3-longrope-partial": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 6.0]},
        },
    ),
}
"""Name -> (model type, changes to `SIZES`)."""


def raw_config(name: str) -> dict[str, Any]:
    """The `config.json` of a grid entry."""
    model_type, changes = GRID[name]
    sizes = GPT2_SIZES if model_type == "gpt2" else SIZES
    # So small a vocabulary does not have the usual padding token.
    padding = {} if model_type in ("llama", "mistral", "gpt2") else {"pad_token_id": None}
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return {"model_type": model_type, "architectures": [architecture], **sizes, **padding, **changes}


def read_by_transformers(raw: dict[str, Any]) -> transformers.PreTrainedConfig:
    """The configuration that transformers reads from a `config.json`."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    return transformers.AutoConfig.for_model(content.pop("model_type"), **content)


def hf_model(raw: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """A transformers model in evaluation mode, with random weights, norms and biases.

    Queries and keys are large, so that attention is far from uniform and positions matter.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, raw["architectures"][0])(read_by_transformers(raw))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                elif any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "c_attn")):
                    parameter.mul_(4)
    return model.to(dtype).eval()


def save_hf(raw: dict[str, Any], folder: Any, **options: Any) -> transformers.PreTrainedModel:
    """Save a tiny random transformers model and return it; `options` go to `save_pretrained`."""
    dtype = options.pop("dtype", torch.float32)
    model = hf_model(raw, seed=options.pop("seed", 0), dtype=dtype)
    model.save_pretrained(folder, **options)
    return model
