"""Checkpoints loaded with a base in 4 bits: their weights, what is saved, and what cannot be done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.config.lora import LoRAArgs
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError, ConfigError
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens
from reallm.model.quantized import quantized_layers
from reallm.parallel.mesh import Mesh
from tests.helpers.hf_grid import raw_config, save_hf
from tests.helpers.nf4 import ReferenceWeight, reference_quantizer

__all__ = ["reference_quantizer"]
pytestmark = pytest.mark.usefixtures("reference_quantizer")

TOKENS, CU_SEQLENS = torch.arange(11) * 5, torch.tensor([0, 4, 11])


def loaded(tmp_path: Path, name: str = "gqa", **options: Any) -> ReaLModel:
    """With an adapter as if it had been trained."""
    save_hf(raw_config(name), tmp_path / "base")
    model = ReaLModel.from_pretrained(tmp_path / "base", lora=LoRAArgs(rank=4, quantize_base="nf4"), **options)
    return with_values(model)


def with_values(model: ReaLModel) -> ReaLModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def dequantized(model: ReaLModel, base: Path) -> ReaLModel:
    """The model with float weights, those that the quantized ones stand for."""
    dense = with_values(ReaLModel.from_pretrained(base, lora=LoRAArgs(rank=4), dtype=model.dtype))
    with torch.no_grad():
        for name, layer in quantized_layers(model.network).items():
            dense.get_parameter(name).copy_(layer.weight)
    return dense


@pytest.mark.parametrize("name", ["gqa", "gpt2", "phi3", "all-biases-tied"])
def test_it_computes_with_the_weights_of_the_checkpoint_quantized(name: str, tmp_path: Path) -> None:
    model, base = loaded(tmp_path, name), tmp_path / "base"
    original = ReaLModel.from_pretrained(base)
    for weight, layer in quantized_layers(model.network).items():
        expected = ReferenceWeight.of(original.get_parameter(weight)).dequantize()
        assert torch.equal(layer.weight, expected), weight
    logits = model(TOKENS, CU_SEQLENS)
    torch.testing.assert_close(logits, dequantized(model, base)(TOKENS, CU_SEQLENS), rtol=1e-5, atol=1e-5)
    with model.adapters_off():
        assert not torch.allclose(model(TOKENS, CU_SEQLENS), logits, atol=1e-3)
    assert model.bytes_read == original.bytes_read


def test_it_generates_as_the_model_with_these_weights(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    config = GenerationConfig(max_new_tokens=20, temperature=0.0, stop_token_ids=())
    found, expected = (
        [each.token_ids for each in generate_tokens(one.network, [[5, 9, 2], [3]], config)]
        for one in (model, dequantized(model, tmp_path / "base"))
    )
    assert found == expected


def test_weights_are_quantized_from_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    model = loaded(tmp_path, dtype="bfloat16")
    assert {layer.weight.dtype for layer in quantized_layers(model.network).values()} == {torch.bfloat16}
    assert model(TOKENS, CU_SEQLENS).dtype == torch.bfloat16
    assert model.to("bfloat16") is model


def test_what_is_saved_is_an_adapter_that_is_merged_into_the_original_weights(tmp_path: Path) -> None:
    model, folder = loaded(tmp_path), tmp_path / "adapter"
    model.save_pretrained(folder)
    assert all(".lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    whole = ReaLModel.from_pretrained(folder)
    assert not whole.config.base_is_quantized
    original = ReaLModel.from_pretrained(tmp_path / "base", lora=LoRAArgs(path=str(folder)))
    assert torch.equal(whole(TOKENS, CU_SEQLENS), original(TOKENS, CU_SEQLENS))
    again = ReaLModel.from_pretrained(tmp_path / "base", lora=LoRAArgs(path=str(folder), quantize_base="nf4"))
    assert torch.equal(again(TOKENS, CU_SEQLENS), model(TOKENS, CU_SEQLENS))
    with pytest.raises(ConfigError, match=r"^adapters are merged into the original weights, not into 4 bits"):
        model.merged()


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    loaded(tmp_path)
    file, name = tmp_path / "base" / "model.safetensors", "model.layers.0.mlp.down_proj.weight"
    tensors = load_file(file)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"tensor '{name}' has 1 of 1,536 values that are NaN or infinite"):
        ReaLModel.from_pretrained(tmp_path / "base", lora=LoRAArgs(rank=4, quantize_base="nf4"))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model: model.to("bfloat16"), "a base model in 4 bits cannot be converted or moved"),
        (lambda model: model.async_offload(), "a base model in 4 bits cannot be offloaded"),
        (lambda model: model.reallocate("dp1"), "a base model in 4 bits cannot be moved to another layout"),
        (
            lambda model: ReaLModel(model.config, device="meta", mesh=Mesh.of("dp1")),
            "a base model in 4 bits is held by one",
        ),
        (lambda model: ReaLModel(model.config), "quantizes the weights of a checkpoint; load one with from_pretrained"),
    ],
)
def test_what_cannot_be_done_with_it(use: Callable[[ReaLModel], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^lora.quantize_base:? {message}"):
        use(loaded(tmp_path))
