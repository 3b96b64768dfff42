"""Sizes that a `config.json` claims are held against the tensors beside it before anything is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reallm import ReaLModel
from reallm.errors import CheckpointError
from reallm.hf.conversion.config import load_model_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 17, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ReaLModel.from_llama(LLAMA).save_pretrained(tmp_path)
    return tmp_path


def claim(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers=10000000 must be at most 10,000"),
        ({"num_hidden_layers": 9_999}, "num_hidden_layers=9999, but the checkpoint has only 21 tensors"),
        ({"hidden_size": 2**63}, "hidden_size=9223372036854775808 must be a finite number of at most 64 bits"),
        ({"hidden_size": 2**40}, "hidden_size=1099511627776 must be at most 2,147,483,647"),
        ({"vocab_size": 2**30}, "vocab_size=1073741824, but no tensor .* has a dim of more than 17"),
        ({"head_dim": 2**30}, "head_dim=1073741824, but no tensor"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 1}, r"make a matrix of more than 2\^44 elements"),
        ({"num_attention_heads": 10**30}, "num_attention_heads=1000000000000000.* must be a finite number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a finite number"),
        ({"rope_parameters": {"rope_theta": [1]}}, r"rope_theta=\[1\] must be a number"),
        ({"rope_scaling": [2.0]}, r"rope_scaling=\[2.0\] must be an object"),
        ({"architectures": 5}, "architectures=5 must be a list of names"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\] must be text"),
    ],
)
def test_what_cannot_be_true_is_refused_at_once(folder: Path, changes: dict[str, Any], message: str) -> None:
    claim(folder, **changes)
    for read in (ReaLModel.from_pretrained, load_model_config):
        with pytest.raises(CheckpointError, match=message) as found:
            read(folder)
        assert "config.json" in str(found.value)


def test_a_folder_without_weights_is_believed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    claim(folder, num_hidden_layers=100)
    assert load_model_config(folder).n_layers == 100


def test_what_is_true_is_read(folder: Path) -> None:
    save_file({**dict.fromkeys(["a"], torch.ones(1))}, folder / "other.safetensors")
    assert load_model_config(folder).n_layers == 2
