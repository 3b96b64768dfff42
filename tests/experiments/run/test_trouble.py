"""What a run does when training goes astray: numbers that are not finite, memory that runs out."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.namedarray import NamedArray
from reallm.errors import ConfigError, NonFiniteError, ReallmError
from reallm.experiments.preflight import memory as memory_check
from reallm.model.transformer import Transformer
from reallm.training.memory import GIB, MemoryEstimate
from reallm.training.objective import LossOutput
from tests.experiments.conftest import Trainer, records


class BadRow(SFTInterface):
    """The loss of one row of the training file is NaN."""

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        output = super().loss(network, batch)
        bad = any(name.endswith("train-10.jsonl:4") for name in batch.metadata["ids"])
        return LossOutput(output.loss_sum * math.nan, output.stats) if bad else output


def with_interface(trainer: Trainer, interface: type) -> Trainer:
    trainer.algorithm = dataclasses.replace(trainer.algorithm, interfaces={"model": interface})
    return trainer


def test_a_bad_row_stops_the_run_with_its_name_after_saving(trainer: Trainer) -> None:
    config = trainer.config(batch_size=1, name="bad")
    with pytest.raises(NonFiniteError, match=r"step \d+: the loss of '.*train-10\.jsonl:4' is not finite \(nan\)"):
        with_interface(trainer, BadRow).run(config)
    folder = trainer.folder / "runs" / "bad"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "train-10.jsonl:4" in summary["error"]
    assert summary["steps"] >= 1
    assert summary["checkpoint"] == f"checkpoints/step-{summary['steps']:06d}"
    assert f"the last save is {folder / summary['checkpoint']}; to resume: reallm sft resume={folder}" in trainer.output

    skipping = dataclasses.replace(config, resume=str(folder), optimizer=OptimizerConfig(lr=1e-3, on_nonfinite="skip"))
    result = trainer.run(skipping)
    assert "changed: optimizer.on_nonfinite stop -> skip" in trainer.output
    assert result.steps == 10
    assert result.metrics["train/skipped_steps"] == 1
    skipped = [line for line in records(result) if line.get("train/loss", 0) is None]
    assert [line["step"] for line in skipped] == [summary["steps"] + 1]
    assert "skipped 1" in trainer.output


class OutOfMemory(SFTInterface):
    error: Exception

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        raise self.error


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."), "2.50 GiB"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
            "99",
        ),
    ],
)
def test_memory_that_runs_out_is_told_with_what_it_went_to_and_what_helps(
    trainer: Trainer, error: Exception, asked: str
) -> None:
    interface = type("Interface", (OutOfMemory,), {"error": error})
    with pytest.raises(ReallmError) as e:
        with_interface(trainer, interface).run(trainer.config())
    message = str(e.value)
    assert "\n" not in message
    for expected in (
        "out of memory in step 1", asked, "parameters 0.4 MiB", "gradients 0.4 MiB", "optimizer ",
        "max_tokens_per_microbatch=8192", "model.gradient_checkpointing=full",
    ):  # fmt: skip
        assert expected in message, message


def test_other_errors_pass(trainer: Trainer) -> None:
    interface = type("Interface", (OutOfMemory,), {"error": RuntimeError("a bug")})
    with pytest.raises(RuntimeError, match="^a bug$"):
        with_interface(trainer, interface).run(trainer.config(name="bug"))
    summary = json.loads((trainer.folder / "runs" / "bug" / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "a bug")


def needing(n_gib: float, activations: float = 0.0) -> MemoryEstimate:
    kept = int((n_gib - activations) * GIB)
    return MemoryEstimate(kept, 0, 0, int(activations * GIB), 8192)


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (needing(0.5), None),
        (needing(1.1), None),  # an estimate may be 15 % too high
        (needing(2.0, activations=1.5), r"about 2\.0 GiB, and 1\.0 GiB is free.*lower max_tokens_per_microbatch"),
        (needing(2.0), r"about 2\.0 GiB, and 1\.0 GiB is free.*alone do not fit: train a smaller model"),
    ],
)
def test_training_that_cannot_fit_is_refused_before_anything_is_loaded(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, needed: MemoryEstimate, expected: str | None
) -> None:
    def estimate(*args: Any, **kwargs: Any) -> MemoryEstimate:
        return needed

    monkeypatch.setattr(memory_check, "available_memory", lambda device: GIB)
    monkeypatch.setattr(memory_check, "estimate", estimate)
    if expected is None:
        trainer.run(trainer.config())
        assert ("memory is tight: " in trainer.output) == (needed.total > GIB)
        return
    with pytest.raises(ConfigError, match=expected):
        trainer.run(trainer.config())
    assert not list((trainer.folder / "runs").iterdir())


def test_the_plan_and_the_memory_are_told_before_training(trainer: Trainer) -> None:
    trainer.run(trainer.config(max_tokens_per_microbatch=40))
    for expected in (
        "plan: 3 steps of 4 samples, 3 an epoch", "tokens on average, in ", "micro-batches of at most 40",
        "memory: about ", "parameters 0.4 MiB, gradients 0.4 MiB, optimizer 0.7 MiB, activations at ",
        "free on cpu",
    ):  # fmt: skip
        assert expected in trainer.output, expected
    assert trainer.output.index("memory: about") < trainer.output.index("step 1/3")
