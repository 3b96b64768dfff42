"""Names of tensors that wrappers of the saved module have changed, or that a class without a head has saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from reallm.checkpoint.names import base_prefix
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError
from reallm.hf.conversion.families import get_family
from tests.helpers.hf_grid import raw_config, save_hf

TOKENS, BOUNDS = torch.tensor([5, 3, 8, 1]), torch.tensor([0, 4], dtype=torch.int32)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return ReaLModel.from_pretrained(folder, dtype=torch.float32)(TOKENS, BOUNDS)


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name: f"_orig_mod.{name}", r"'_orig_mod\.', added by torch\.compile, is stripped"),
        (lambda name: f"module.{name}", r"'module\.', added by DistributedDataParallel, is stripped"),
        (lambda name: f"_forward_module.{name}", r"'_forward_module\.', added by DeepSpeed, is stripped"),
        (lambda name: f"base_model.model.{name}", r"'base_model\.model\.', added by PEFT, is stripped"),
        (lambda name: f"module._orig_mod.{name}", "added by torch.compile and DistributedDataParallel"),
        (lambda name: f"_orig_mod.module.{name}", "added by torch.compile and DistributedDataParallel"),
        (lambda name: f"module.base_model.model.{name}", "added by DistributedDataParallel and PEFT"),
        (lambda name: name.replace("layers.0.", "layers.0._orig_mod."), "added by torch.compile"),
        (lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."), "added by activation checkpointing"),
        (lambda name: name.removeprefix("model."), r"'model\.' is added to the names of tensors, which lack it"),
        (lambda name: f"module.{name.removeprefix('model.')}", r"'model\.' is added"),
    ],
)
@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_prefixes_are_left_out_or_added_and_told_once(
    name: str, change: Callable[[str], str], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_hf(raw_config(name), tmp_path)
    expected = logits(tmp_path)
    assert not caplog.messages
    rename(tmp_path, change)
    assert torch.equal(logits(tmp_path), expected)
    told = list(caplog.messages)
    assert any(re.search(said, message) for message in told)
    assert torch.equal(logits(tmp_path), expected)
    assert caplog.messages == told


def test_what_is_saved_has_the_family_s_names(tmp_path: Path) -> None:
    save_hf(raw_config("gqa"), tmp_path / "wrapped")
    expected = load_file(tmp_path / "wrapped" / "model.safetensors")
    rename(tmp_path / "wrapped", lambda name: f"module._orig_mod.{name}")
    ReaLModel.from_pretrained(tmp_path / "wrapped").save_pretrained(tmp_path / "plain")
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == expected.keys()


@pytest.mark.parametrize("name", ["tied", "gpt2", "gemma2"])
def test_a_class_without_head_whose_head_is_tied(name: str, tmp_path: Path) -> None:
    save_hf(raw_config(name), tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "headless")
    assert torch.equal(logits(tmp_path / "headless"), logits(tmp_path / "whole"))
    ReaLModel.from_pretrained(tmp_path / "headless").save_pretrained(tmp_path / "saved")
    architectures = json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"]
    assert architectures == json.loads((tmp_path / "whole" / "config.json").read_text())["architectures"]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.allclose(theirs(TOKENS[None]).logits[0], logits(tmp_path / "whole"), atol=1e-4)


def test_a_class_without_head_whose_head_is_not_tied(tmp_path: Path) -> None:
    save_hf(raw_config("gqa"), tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "headless")
    with pytest.raises(CheckpointError, match=r"headless has no output head \('lm_head.weight' is missing\)"):
        ReaLModel.from_pretrained(tmp_path / "headless")
    critic = ReaLModel.from_pretrained(tmp_path / "headless", is_critic=True)
    expected = ReaLModel.from_pretrained(tmp_path / "whole", is_critic=True)
    assert torch.equal(critic(TOKENS, BOUNDS), expected(TOKENS, BOUNDS))


def test_tensors_of_an_adapter_among_the_weights(tmp_path: Path) -> None:
    save_hf(raw_config("gqa"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_A.weight' belongs to an adapter; merge it .*merge_and_unload"):
        ReaLModel.from_pretrained(tmp_path)


def test_names_that_would_become_one_stay(tmp_path: Path) -> None:
    save_hf(raw_config("gqa"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["_orig_mod.lm_head.weight"] = torch.zeros(97, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has the unexpected tensor '_orig_mod.lm_head.weight'"):
        ReaLModel.from_pretrained(tmp_path)


def test_the_prefix_of_a_family() -> None:
    assert [base_prefix(get_family(name)) for name in ("llama", "gpt2", "phi3")] == ["model.", "transformer.", "model."]
