"""Policies that start from an adapter: their reference is the model that training begins with, on the same base."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from reallm.algorithms.dpo import interface as dpo
from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.rl import reference as rl
from reallm.algorithms.role import Role
from reallm.config.args import ModelArgs, ReferenceArgs
from reallm.config.lora import LoRAArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.experiments.run.runner import run
from reallm.plugins import registry
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.run.test_grpo import Runs

REFERENCES = {"dpo": dpo.ReferenceInterface, "grpo": rl.ReferenceInterface}


@pytest.fixture(scope="module")
def start(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model."""
    model = ReaLModel.from_pretrained(checkpoint, lora=LoRAArgs(rank=2, dora=True), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0.0, 0.3, generator=generator)
    folder = tmp_path_factory.mktemp("start")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def merged(start: Path, tmp_path: Path) -> Path:
    ReaLModel.from_pretrained(start).merged().save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"


class Policies:
    """Runs whose policies have adapters."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint = folder, checkpoint

    def run(self, algorithm: str, path: Path, lora: LoRAArgs, **changes: Any) -> tuple[Path, str]:
        """The folder of a run, and what it has printed."""
        settings = {
            "actor": ModelArgs(path=str(path), device="cpu", lora=lora),
            "ref": ReferenceArgs(device="cpu"),
            "optimizer": OptimizerConfig(lr=1e-2),
            **changes,
        }
        if algorithm == "grpo":
            runs = Runs(self.folder, self.checkpoint, registry.get("algorithm", "grpo"))
            result = runs.run(runs.config(**{"beta": 0.1, "max_steps": 3, **settings}))
            return result.run_dir, runs.printed
        rows = [{"prompt": f"{n}?", "chosen": " yes", "rejected": " no"} for n in "abcd"]
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = registry.get("dataset", "rw_pair").config_class()(
            train_path=str(self.folder / "pairs.jsonl"), train_bs_n_seqs=2
        )
        config = DPOConfig(
            dataset=dataset,
            loggers=["jsonl"],
            output_dir=str(self.folder / "runs"),
            **{"ref_logprobs": "live", "epochs": 2, **settings},
        )
        printed = io.StringIO()
        console = Console(file=printed, width=300)
        return run(config, registry.get("algorithm", "dpo"), name="dpo", console=console).run_dir, printed.getvalue()


@pytest.fixture
def policies(tmp_path: Path, checkpoint: Path) -> Policies:
    return Policies(tmp_path, checkpoint)


def differences(monkeypatch: pytest.MonkeyPatch, algorithm: str, apart: ReaLModel) -> list[float]:
    """Gets the largest difference of each call's log-probabilities from those of a model of its own."""
    found: list[float] = []
    inference = REFERENCES[algorithm].inference

    def compared(self: Any, model: ReaLModel, batch: Any, context: Any) -> Any:
        outputs = inference(self, model, batch, context)
        expected = inference(self, apart, batch, context)
        found.append(float((outputs["ref_logprobs"] - expected["ref_logprobs"]).abs().max()))
        return outputs

    monkeypatch.setattr(REFERENCES[algorithm], "inference", compared)
    return found


@pytest.mark.parametrize("algorithm", REFERENCES)
class TestReference:
    def test_it_has_the_adapter_that_training_began_with(
        self, algorithm: str, policies: Policies, start: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lora = LoRAArgs(path=str(start))
        apart = ReaLModel.from_pretrained(checkpoint, lora=lora)
        found = differences(monkeypatch, algorithm, apart)
        trained, output = policies.run(algorithm, checkpoint, lora)
        assert f"ref: the model of actor with the adapter that training began with, {start}" in output
        assert len(found) >= 3
        assert max(found) < 1e-6
        tokens, lengths = torch.arange(20), torch.tensor([0, 20])
        change = ReaLModel.from_pretrained(trained)(tokens, lengths) - apart(tokens, lengths)
        assert change.abs().max() > 1e-3  # while the policy has gone on

    def test_it_is_the_model_that_an_adapter_was_merged_into(
        self, algorithm: str, policies: Policies, merged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = differences(monkeypatch, algorithm, ReaLModel.from_pretrained(merged))
        _, output = policies.run(algorithm, merged, LoRAArgs(rank=4))
        assert "ref: the model of actor without its adapters" in output
        assert max(found) < 1e-6

    def test_it_is_the_bare_base_if_that_is_given(
        self, algorithm: str, policies: Policies, start: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = differences(monkeypatch, algorithm, ReaLModel.from_pretrained(checkpoint))
        ref = ReferenceArgs(path=str(checkpoint), device="auto" if not torch.cuda.is_available() else "cpu")
        _, output = policies.run(algorithm, checkpoint, LoRAArgs(path=str(start)), ref=ref)
        assert "ref: the model of actor without its adapters" in output
        assert max(found) < 1e-6


def test_a_save_in_progress_reads_the_adapter_that_is_trained(start: Path, checkpoint: Path) -> None:
    model = ReaLModel.from_pretrained(checkpoint, lora=LoRAArgs(rank=2, dora=True))
    name = next(name for name in model.local_tensors() if name.endswith("lora_b"))
    read: list[bool] = []
    engine: Any = SimpleNamespace(before_optimizer_step=lambda: read.append(not model.get_parameter(name).any()))
    actor = Role(model, engine, None, ModelArgs(path="x"), torch.float32)
    ref = replace(actor, engine=None, base_of="actor", adapter=model.read_adapter(start))
    with ref.in_place(model, {"actor": actor, "ref": ref}):
        assert read == [True]
        assert model.get_parameter(name).any()
    assert not model.get_parameter(name).any()


def test_a_resumed_run_has_the_same_reference(
    policies: Policies, start: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoRAArgs(path=str(start))
    whole, _ = policies.run("dpo", checkpoint, lora, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        policies.run("dpo", checkpoint, lora, name="stopped")
    resumed, output = policies.run("dpo", checkpoint, lora, name="stopped", resume="auto")
    assert f"ref: the model of actor with the adapter that training began with, {start}" in output
    assert_same_run(whole, resumed)
