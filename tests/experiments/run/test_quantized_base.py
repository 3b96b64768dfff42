"""Runs that train adapters on a base in 4 bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.algorithms.graph import Graph
from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs
from reallm.config.lora import LoRAArgs
from reallm.config.parallel import ParallelArgs
from reallm.errors import ConfigError
from reallm.experiments.preflight.checks import check
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import Trainer
from tests.helpers.nf4 import ReferenceWeight, reference_quantizer

__all__ = ["reference_quantizer"]


def config(trainer: Trainer, lora: LoRAArgs, model: dict[str, Any] | None = None, **changes: Any) -> SFTConfig:
    args = ModelArgs(path=str(trainer.checkpoint), device="cpu", lora=lora, **(model or {}))
    return trainer.config(model=args, **changes)


def refused(trainer: Trainer, config: SFTConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(config, Graph.of(trainer.algorithm, config))
    assert "\n" not in str(caught.value)


QUANTIZED = LoRAArgs(rank=4, quantize_base="nf4")


def with_dequantized_weights(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with the values that its weights have in 4 bits."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "_proj" in name:
            tensors[name] = ReferenceWeight.of(tensor).dequantize()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def adapter(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "last" / "adapter_model.safetensors")


@pytest.mark.usefixtures("reference_quantizer")
@pytest.mark.parametrize("gradient_checkpointing", ["none", "full"])
def test_the_adapter_is_the_one_trained_on_the_dequantized_weights(
    trainer: Trainer, tmp_path: Path, gradient_checkpointing: str
) -> None:
    model = {"gradient_checkpointing": gradient_checkpointing}
    quantized = adapter(trainer.run(config(trainer, QUANTIZED, model, name="quantized", epochs=2)).run_dir)
    assert "base in 4 bits, products in float32 on cpu" in trainer.output
    original = adapter(trainer.run(config(trainer, LoRAArgs(rank=4), model, name="original", epochs=2)).run_dir)
    trainer.checkpoint = with_dequantized_weights(trainer.checkpoint, tmp_path / "dequantized")
    dense = adapter(trainer.run(config(trainer, LoRAArgs(rank=4), model, name="dense", epochs=2)).run_dir)
    assert quantized.keys() == dense.keys()
    for name, tensor in quantized.items():
        torch.testing.assert_close(tensor, dense[name], rtol=0, atol=1e-5)
    assert any(not torch.allclose(tensor, original[name], atol=1e-4) for name, tensor in quantized.items())


@pytest.mark.usefixtures("reference_quantizer")
def test_a_stopped_run_goes_on_bit_for_bit(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"epochs": 2, "model": {"dtype": "bfloat16"}}
    whole = trainer.run(config(trainer, QUANTIZED, name="whole", **settings))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        trainer.run(config(trainer, QUANTIZED, name="stopped", **settings))
    assert_same_run(
        whole.run_dir, trainer.run(config(trainer, QUANTIZED, name="stopped", resume="auto", **settings)).run_dir
    )


@pytest.mark.usefixtures("reference_quantizer")
@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (
            {"tp": 2},
            r"^model.lora.quantize_base: a base model in 4 bits is held whole by one process, and parallel.\* is",
        ),
        ({"pp": 2}, r"^model.lora.quantize_base: a base model in 4 bits is held whole by one process"),
        ({"dp": 2, "zero": 3}, r"^model.lora.quantize_base: a base model in 4 bits is held whole by one process"),
    ],
)
def test_layouts_of_several_processes_are_refused(trainer: Trainer, parallel: dict[str, Any], message: str) -> None:
    refused(trainer, config(trainer, QUANTIZED, parallel=ParallelArgs(**parallel)), message)


def test_it_needs_a_gpu_and_adapters(trainer: Trainer) -> None:
    refused(
        trainer, config(trainer, QUANTIZED), r"^model.lora.quantize_base=nf4 needs a CUDA GPU, and the device is cpu"
    )
    with pytest.raises(ConfigError, match=r"^quantize_base=nf4 has no effect without rank; give a rank"):
        LoRAArgs(quantize_base="nf4")
    with pytest.raises(ConfigError, match=r"^quantize_base=nf4 does not work with dora"):
        LoRAArgs(rank=4, dora=True, quantize_base="nf4")
