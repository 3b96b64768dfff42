"""Tiny checkpoints of architectures that have no family, and of Llama, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.helpers.tokenizers import tiny_tokenizer

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 3,
    "pad_token_id": 4,
}  # fmt: skip


def hf_model(model_type: str, **changes: Any) -> transformers.PreTrainedModel:
    """A model of transformers with random weights."""
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **changes})
    torch.manual_seed(5)
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def save(folder: Path, model: transformers.PreTrainedModel) -> Path:
    """A checkpoint of a model, with a tokenizer."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def helium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an architecture that has no family."""
    return save(tmp_path_factory.mktemp("helium"), hf_model("helium"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an architecture that has one."""
    return save(tmp_path_factory.mktemp("llama"), hf_model("llama"))
