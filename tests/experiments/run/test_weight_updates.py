"""A reference that follows the trained model: saved with it, and resumed bit for bit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.specs import Algorithm, WeightUpdate
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after, tensors
from tests.experiments.conftest import HF_CONFIG, Trainer
from tests.experiments.run.test_precomputed import LIVE, HeldConfig, train
from tests.helpers.tokenizers import tiny_tokenizer

SYNCED = Algorithm(
    HeldConfig,
    (LIVE.graph[0], dataclasses.replace(LIVE.graph[1], updates=(WeightUpdate("ref", every=2, eta=0.3),))),  # type: ignore[index]
    LIVE.interfaces,
)


@pytest.fixture
def synced(trainer: Trainer) -> Trainer:
    trainer.algorithm, trainer.name = SYNCED, None
    return trainer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("at", [3, 4])  # between updates, after one
def test_a_stopped_run_goes_on_bit_for_bit(
    synced: Trainer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, at: int
) -> None:
    ref = tmp_path / "ref"
    shutil.copytree(checkpoint, ref)
    settings: dict[str, Any] = {"n_valid": 3, "epochs": 2, "dtype": dtype}
    whole = train(synced, ref, name="whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, at)
        stopped = train(synced, ref, name="stopped", **settings)
    saved = stopped.checkpoint / "training_state" / "models" / "ref"  # type: ignore[operator]
    assert not list(saved.glob("tokenizer*"))
    first, now = load_file(ref / "model.safetensors"), load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in now.values()} == {getattr(torch, dtype)}
    assert any(not torch.equal(tensor.to(now[name].dtype), now[name]) for name, tensor in first.items())
    shutil.rmtree(ref)  # what the run began with is no longer needed
    resumed = train(synced, ref, name="stopped", resume=str(stopped.run_dir), **settings)
    assert resumed.steps == 6
    assert_same_run(whole.run_dir, resumed.run_dir)
    assert any("models/ref" in name for name in tensors(resumed.checkpoint))  # type: ignore[arg-type]
    assert (resumed.checkpoint / "model.safetensors").is_file()  # type: ignore[operator]


def test_a_follower_of_another_architecture_is_refused_before_anything_is_loaded(
    synced: Trainer, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    ReaLModel.from_llama({**HF_CONFIG, "intermediate_size": 128}).save_pretrained(other, tokenizer=tiny_tokenizer())
    with pytest.raises(
        ConfigError, match=r"^ref.path: the weights of 'ref' follow those of 'model', and need the same"
    ):
        train(synced, other)
