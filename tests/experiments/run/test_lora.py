"""Runs that train adapters: what they save, how they go on, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.graph import Graph
from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs, ReferenceArgs
from reallm.config.lora import LoRAArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.experiments.evaluation.evaluate import evaluate
from reallm.experiments.preflight.checks import check
from reallm.experiments.run.runner import run
from reallm.plugins import registry
from tests.experiments.checkpointing.test_resume import assert_same_run, numbers, stop_after
from tests.experiments.conftest import Trainer, records


def config(
    trainer: Trainer, lora: LoRAArgs | None = None, model: dict[str, Any] | None = None, **changes: Any
) -> SFTConfig:
    lora = lora or LoRAArgs(rank=4, alpha=16, dropout=0.1)
    args = ModelArgs(path=str(trainer.checkpoint), device="cpu", lora=lora, **(model or {}))
    return trainer.config(model=args, **changes)


def check_config(trainer: Trainer, config: SFTConfig) -> None:
    """As commands do before they start."""
    check(config, Graph.of(trainer.algorithm, config))


@pytest.fixture
def done(trainer: Trainer) -> Path:
    return trainer.run(config(trainer, name="done", n_valid=3, epochs=2)).run_dir


def test_a_run_saves_an_adapter_that_lowers_the_loss(trainer: Trainer, done: Path, checkpoint: Path) -> None:
    last = done / "checkpoints" / "last"
    files = {file.name for file in last.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "training_state"} <= files
    assert not files & {"config.json", "model.safetensors"}
    content = json.loads((last / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == str(checkpoint.resolve())
    assert "of LoRA adapters of rank 4" in trainer.output
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval/loss"] for line in lines if "eval/loss" in line]
    assert losses[-1] < losses[0]
    model = ReaLModel.from_pretrained(done)
    assert model.config.lora is not None
    state = load_file(last / "training_state" / "model" / "model.safetensors")
    assert state
    assert all("lora_" in name for name in state)  # nothing of the base is kept a second time


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_bit_for_bit(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    settings: dict[str, Any] = {"n_valid": 3, "epochs": 2, "model": {"dtype": dtype}}
    whole = trainer.run(config(trainer, name="whole", **settings))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        trainer.run(config(trainer, name="stopped", **settings))
    resumed = trainer.run(config(trainer, name="stopped", resume="auto", **settings))
    assert resumed.metrics["train/loss"] == whole.metrics["train/loss"]
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_it_starts_from_an_adapter(trainer: Trainer, done: Path) -> None:
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "train/loss" in line)
    again = trainer.run(config(trainer, LoRAArgs(path=str(done)), name="again", max_steps=1))
    assert records(again)[0]["train/loss"] < first["train/loss"]
    one, other = (
        load_file(run / "checkpoints" / "last" / "adapter_model.safetensors") for run in (done, again.run_dir)
    )
    assert one.keys() == other.keys()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_rank_of_a_run_does_not_change(trainer: Trainer, done: Path) -> None:
    changed = config(
        trainer, LoRAArgs(rank=8, alpha=16, dropout=0.1), name="done", resume=str(done), n_valid=3, epochs=3
    )
    with pytest.raises(ConfigError, match=r"^model.lora.rank=8 cannot change in a resumed run, where it is 4"):
        trainer.run(changed)


@pytest.mark.parametrize(
    ("lora", "model", "message"),
    [
        (
            {"rank": 4, "targets": "q_prj"},
            {},
            r"^model.lora.targets: 'q_prj' is not a linear layer of the model's blocks",
        ),
        ({"path": "nowhere"}, {}, r"^model.lora.path: nowhere does not exist"),
        ({"rank": 4}, {"resize_vocab": True}, r"^model.resize_vocab does not work with model.lora"),
    ],
)
def test_what_cannot_be_trained(trainer: Trainer, lora: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(trainer, config(trainer, LoRAArgs(**lora), model))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 8.0}, r"^alpha=8.0 has no effect without rank; give a rank, such as rank=16"),
        ({"rank": 0}, r"^rank=0 must be at least 1"),
        ({"rank": 4, "path": "x"}, r"^rank=4: the adapter in path has its own; leave rank out"),
        ({"rank": 4, "targets": []}, r"^targets is empty"),
    ],
)
def test_settings_that_are_not_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRAArgs(**values)


def test_a_folder_of_an_adapter_is_no_model_to_train(trainer: Trainer, done: Path) -> None:
    trainer.checkpoint = done
    with pytest.raises(ConfigError, match=r"^model.path: .* holds an adapter of .*, not a whole model; give its base"):
        check_config(trainer, trainer.config())


def test_the_folder_of_an_adapter_is_evaluated_with_its_base(trainer: Trainer, done: Path, checkpoint: Path) -> None:
    def evaluated(**model: Any) -> Mapping[str, float]:
        args = ModelArgs(device="cpu", **model)
        settings = trainer.config(model=args)
        return evaluate(settings, trainer.algorithm, console=Console(file=io.StringIO())).metrics

    found = evaluated(path=str(done))
    assert found == evaluated(path=str(checkpoint), lora=LoRAArgs(path=str(done)))
    assert found["eval/loss"] != evaluated(path=str(checkpoint))["eval/loss"]


class TestReference:
    """The reference of a policy with adapters is its base model, and has no weights of its own."""

    def run(self, trainer: Trainer, name: str, *, sync_ref_model: bool = False, **ref: Any) -> tuple[Path, str]:
        algorithm = registry.get("algorithm", "dpo")
        rows = trainer.folder / "pairs.jsonl"
        rows.write_text(
            "".join(json.dumps({"prompt": f"{n}?", "chosen": " yes", "rejected": " no"}) + "\n" for n in "abcd")
        )
        dataset = registry.get("dataset", "rw_pair").config_class()(train_path=str(rows), train_bs_n_seqs=2)
        config = DPOConfig(
            actor=ModelArgs(path=str(trainer.checkpoint), device="cpu", lora=LoRAArgs(rank=4)),
            ref=ReferenceArgs(device="cpu", **ref),
            ref_logprobs="live",
            sync_ref_model=sync_ref_model,
            dataset=dataset,
            optimizer=OptimizerConfig(lr=1e-2),
            loggers=["jsonl"],
            epochs=3,
            output_dir=str(trainer.folder / "runs"),
            name=name,
        )
        printed = io.StringIO()
        return run(config, algorithm, name="dpo", console=Console(file=printed, width=200)).run_dir, printed.getvalue()

    def test_it_shares_the_weights_of_the_policy(
        self, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared, output = self.run(trainer, "shared")
        assert "ref: the model of actor without its adapters" in output
        copy = tmp_path / "copy"  # the same weights elsewhere
        shutil.copytree(trainer.checkpoint, copy)
        apart, output = self.run(trainer, "apart", path=str(copy))
        assert "without its adapters" not in output
        assert numbers(shared) == numbers(apart)
        assert_same_run(shared, apart)

    def test_it_cannot_follow_the_policy(self, trainer: Trainer) -> None:
        with pytest.raises(ConfigError, match=r"^actor.lora: the weights of 'ref' are to follow those of 'actor'"):
            self.run(trainer, "following", sync_ref_model=True)
