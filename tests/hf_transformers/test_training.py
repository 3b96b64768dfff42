"""Training in transformers' own layers, against a training loop of transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.args import ModelArgs
from reallm.config.lora import LoRAArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.parallel import ParallelArgs
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.experiments.preflight.checks import check_layout
from reallm.hf.conversion.config import load_model_config
from reallm.parallel.layout import Layout
from reallm.plugins import registry
from reallm.training.engine import TrainEngine
from reallm.training.memory import traced_activations
from tests.experiments.conftest import Trainer, records
from tests.experiments.run.test_on_ranks import train
from tests.helpers.ranks import on_ranks
from tests.hf_transformers.conftest import hf_model, save

OPTIMIZER = OptimizerConfig(
    lr=1e-3, schedule="constant", warmup_steps=0, beta1=0.9, beta2=0.95, eps=1e-8, max_grad_norm=0
)


@pytest.fixture
def trainer(tmp_path: Path, helium: Path) -> Trainer:
    return Trainer(tmp_path, helium, registry.get("algorithm", "sft"))


def model_args(folder: Path, **changes: object) -> ModelArgs:
    return ModelArgs(path=str(folder), device="cpu", implementation="transformers", **changes)


def sample(row: int, n_tokens: int, n_prompt: int) -> NamedArray:
    tokens = torch.randint(5, 400, (n_tokens,), generator=torch.Generator().manual_seed(row))
    return NamedArray(input_ids=tokens, loss_mask=torch.arange(n_tokens) >= n_prompt).with_metadata(
        seqlens={"input_ids": [[n_tokens]], "loss_mask": [[n_tokens]]}, ids=[f"row-{row}"]
    )


SAMPLES = [sample(row, *lengths) for row, lengths in enumerate([(5, 2), (30, 21), (17, 0), (9, 3)])]


def losses_of_transformers(folder: Path, n_steps: int) -> list[float]:
    """The losses of a plain training loop, sequence by sequence."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIMIZER.lr, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
                                  eps=OPTIMIZER.eps, weight_decay=0.0)  # fmt: skip
    found = []
    for _ in range(n_steps):
        rows = []
        for one in SAMPLES:
            logits = model(one.input_ids[None]).logits[0]
            rows.append(F.cross_entropy(logits[:-1], one.input_ids[1:], reduction="none")[one.loss_mask[1:]])
        loss = torch.cat(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("max_tokens", [32, 1000])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_losses_are_those_of_a_loop_of_transformers(helium: Path, max_tokens: int, checkpointing: str) -> None:
    model = ReaLModel.from_pretrained(helium, implementation="transformers")
    model.network.gradient_checkpointing = checkpointing
    engine = TrainEngine(model, OPTIMIZER, total_steps=10, max_tokens_per_microbatch=max_tokens)
    found = [engine.train_batch(gather(SAMPLES), SFTInterface())["loss"] for _ in range(3)]
    assert found == pytest.approx(losses_of_transformers(helium, 3), abs=1e-5)


def test_experts_learn_as_in_a_loop_of_transformers(tmp_path: Path) -> None:
    folder = save(tmp_path, hf_model("flex_olmo", num_experts=4, num_experts_per_tok=2))
    model = ReaLModel.from_pretrained(folder, implementation="transformers")
    engine = TrainEngine(model, OPTIMIZER, total_steps=10, max_tokens_per_microbatch=32)
    found = [engine.train_batch(gather(SAMPLES), SFTInterface())["loss"] for _ in range(2)]
    assert found == pytest.approx(losses_of_transformers(folder, 2), abs=1e-5)


def test_a_run_ends_in_a_checkpoint_of_transformers(trainer: Trainer, helium: Path) -> None:
    result = trainer.run(trainer.config(model=model_args(helium), n_valid=4, eval_max_new_tokens=4))
    losses = [line["train/loss"] for line in records(result) if "train/loss" in line]
    assert losses[-1] < losses[0]
    saved = result.run_dir / "checkpoints" / "last"
    assert transformers.AutoModelForCausalLM.from_pretrained(saved).config.model_type == "helium"


def test_a_run_trains_adapters(trainer: Trainer, helium: Path) -> None:
    args = model_args(helium, lora=LoRAArgs(rank=4, alpha=16))
    result = trainer.run(trainer.config(model=args, epochs=2))
    losses = [line["train/loss"] for line in records(result) if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert (result.run_dir / "checkpoints" / "last" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("zero", [1, 3])
def test_ranks_train_as_one(trainer: Trainer, helium: Path, zero: int) -> None:
    config = trainer.config(model=model_args(helium))
    alone = [line["train/loss"] for line in records(trainer.run(config))]
    parallel = dataclasses.replace(config, parallel=ParallelArgs(dp=2, zero=zero), name="ranks")
    both = [line["train/loss"] for line in records(on_ranks(2, train, parallel)[0])]
    assert both == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_splits_within_the_network_are_refused_before_anything_is_loaded(helium: Path, layout: str) -> None:
    said = rf"^parallel\.{layout[:2]}=2: model.implementation=transformers has no .*plugins new family .*model\.path="
    with pytest.raises(ConfigError, match=said):
        check_layout("model.path", model_args(helium), Layout.parse(layout))


def test_compiling_is_refused(trainer: Trainer, helium: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.compile=true does not work with model.implementation=transformers"):
        trainer.run(trainer.config(model=model_args(helium, compile=True)))


@pytest.mark.parametrize("model_type", ["helium", "phimoe"])
def test_memory_is_estimated(model_type: str, tmp_path: Path) -> None:
    folder = save(tmp_path, hf_model(model_type))
    config = load_model_config(folder, implementation="transformers")
    for device in ("cpu", "meta"):
        peak = traced_activations(config, torch.float32, torch.device(device), [20, 30], "none")
        assert peak is not None
        assert peak > 50 * config.vocab_size * 4
