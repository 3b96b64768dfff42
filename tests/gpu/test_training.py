"""Training on a GPU: resumed bit for bit, memory as it was told, and what is said when it runs out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ReallmError
from reallm.model.config import ReaLModelConfig
from reallm.model.transformer import Transformer
from reallm.plugins import registry
from reallm.training.engine import TrainEngine
from reallm.training.memory import estimate
from reallm.training.objective import LossOutput
from tests.experiments.conftest import HF_CONFIG, Trainer, records
from tests.helpers.tiny_config import TINY
from tests.helpers.tokenizers import tiny_tokenizer
from tests.training.loss_terms import GROUPS, OBJECTIVES
from tests.training.test_engine import sample

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run `tox run -e gpu` on a machine that has one"
)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    checkpoint = tmp_path / "checkpoint"
    ReaLModel.from_llama(HF_CONFIG, seed=5).save_pretrained(checkpoint, tokenizer=tiny_tokenizer())
    return Trainer(tmp_path, checkpoint, registry.get("algorithm", "sft"))


def on_gpu(trainer: Trainer, **changes: Any) -> Any:
    return trainer.config(model=ModelArgs(path=str(trainer.checkpoint), device="cuda"), **changes)


def test_a_run_in_two_parts_is_the_run_in_one(trainer: Trainer) -> None:
    """bfloat16 with float32 masters, and attention's deterministic backward pass."""
    # the learning rate of a schedule follows all steps there are, and the first part does not know of the second
    flat = OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=1)
    whole = trainer.run(on_gpu(trainer, n_valid=3, epochs=4, name="whole", optimizer=flat))
    assert "bfloat16 on cuda" in trainer.output
    first = trainer.run(on_gpu(trainer, n_valid=3, epochs=2, name="parts", optimizer=flat))
    config = on_gpu(trainer, n_valid=3, epochs=4, name="parts", optimizer=flat, resume=str(first.run_dir))
    both = trainer.run(config)
    losses = [[line["train/loss"] for line in records(result) if "train/loss" in line] for result in (whole, both)]
    assert losses[0] == losses[1]
    last = [load_file(result.run_dir / "checkpoints" / "last" / "model.safetensors") for result in (whole, both)]
    assert all(tensor.equal(last[1][name]) for name, tensor in last[0].items())


@pytest.mark.parametrize("gradient_checkpointing", ["none", "selective", "full"])
def test_memory_is_what_was_told(gradient_checkpointing: Any) -> None:
    config = ReaLModelConfig(
        n_layers=6, hidden_size=512, n_q_heads=8, n_kv_heads=4, head_dim=64, intermediate_size=1408, vocab_size=32000,
        max_positions=2048,
    )  # fmt: skip
    lengths, device = (1000, 1000, 1000, 500), torch.device("cuda")
    told = estimate(config, torch.bfloat16, device, lengths, gradient_checkpointing=gradient_checkpointing)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = ReaLModel(config, dtype=torch.bfloat16, device=device)
    model.gradient_checkpointing = gradient_checkpointing
    engine = TrainEngine(model, OptimizerConfig(), total_steps=10, max_tokens_per_microbatch=sum(lengths))
    batch = gather([sample(i, n, 0) for i, n in enumerate(lengths * 2)])
    for _ in range(2):
        engine.train_batch(batch, SFTInterface())
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(told.total, rel=0.15)


class Greedy(SFTInterface):
    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        torch.empty(1 << 44, dtype=torch.uint8, device="cuda")  # 16 TiB
        return super().loss(network, batch)


def test_memory_that_runs_out_is_explained(trainer: Trainer) -> None:
    trainer.algorithm = dataclasses.replace(trainer.algorithm, interfaces={"model": Greedy})
    with pytest.raises(ReallmError, match=r"out of memory in step 1, which asked for 16384\.00 GiB more.*parameters"):
        trainer.run(on_gpu(trainer))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_of_answers_and_of_scores_are_those_of_a_cpu(name: str) -> None:
    found = []
    for device in ("cpu", "cuda", "cuda"):
        model = ReaLModel(TINY.replace(is_critic=name == "scores"), dtype=torch.float32, device=device, seed=3)
        # with a large eps, what AdamW does is smooth in the gradients
        flat = OptimizerConfig(lr=1e-2, eps=1e-3, schedule="constant", warmup_steps=0)
        engine = TrainEngine(model, flat, total_steps=10, max_tokens_per_microbatch=45)
        found.append([engine.train_batch(batch, OBJECTIVES[name]()) for batch in GROUPS])
    for of_cpu, of_gpu in zip(*found[:2], strict=True):
        assert of_gpu == pytest.approx(of_cpu, rel=1e-3, abs=1e-5)
    assert found[1] == found[2]
