"""Tiny checkpoints with random weights, which algorithms are checked with."""

from __future__ import annotations

from pathlib import Path

import torch

from reallm.demo.tokenizer import byte_tokenizer
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.hf.conversion.storing import storing_family
from reallm.model.config import ReaLModelConfig

SIZES = {
    "n_layers": 2,
    "hidden_size": 32,
    "n_q_heads": 2,
    "n_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_positions": 1024,
    "init_std": 0.1,
}
"""Two of everything that a layout of two processes splits."""


def write_tiny_model(folder: Path, *, seed: int, is_critic: bool = False) -> Path:
    """Write a checkpoint of an installed family with random weights and a token for each byte; returns its folder.

    Raises:
        ConfigError: no family is installed that has such a model.
    """
    tokenizer = byte_tokenizer()
    config = ReaLModelConfig(vocab_size=len(tokenizer), **SIZES)  # type: ignore[arg-type]
    family = storing_family(config)
    if family is None:
        raise ConfigError(
            "an algorithm is checked with a tiny model, and no family is installed; pip install reallm-hf-llama"
        )
    hf_config = getattr(ReaLModel, f"config_to_{family}")(config)
    hf_config.eos_token_id = hf_config.pad_token_id = tokenizer.eos_token_id
    model = getattr(ReaLModel, f"from_{family}")(hf_config, dtype=torch.float32, seed=seed)
    model.save_pretrained(folder, tokenizer=tokenizer)
    if is_critic:
        ReaLModel.from_pretrained(folder, is_critic=True, seed=seed).save_pretrained(folder, tokenizer=tokenizer)
    return folder
