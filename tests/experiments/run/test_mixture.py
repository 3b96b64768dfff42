"""Runs on a mixture: what is reported of each source, and exact resuming."""

from __future__ import annotations

import dataclasses
import json

import pytest

from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ConfigError
from reallm.experiments.run.runner import RunResult
from tests.experiments.conftest import Trainer, mixture, records


def losses(result: RunResult, name: str) -> list[float]:
    return [one[name] for one in records(result) if name in one]


def test_each_source_is_reported_and_evaluated(trainer: Trainer) -> None:
    result = trainer.run(trainer.config(dataset=mixture(trainer), max_steps=2, best_metric="eval/loss/few"))
    data = json.loads((result.run_dir / "data.json").read_text())
    train, valid = data["train"], data["valid"]
    n_train = {name: source["n_samples"] for name, source in train["sources"].items()}
    n_valid = {name: source["n_samples"] for name, source in valid["sources"].items()}
    assert {name: n_train[name] + n_valid[name] for name in n_train} == {"few": 20, "many": 60}
    of_epoch = {name: source["n_samples_of_epoch"] for name, source in train["sources"].items()}
    assert sum(of_epoch.values()) == sum(n_train.values())
    assert abs(of_epoch["few"] - 0.4 * sum(n_train.values())) <= 1
    total, share = sum(n_train.values()), 100 * of_epoch["few"] / sum(n_train.values())
    assert f"train: an epoch has {total} samples of 2 sources: few {share:.1f}%" in trainer.output
    assert f"valid, few: {trainer.folder / 'few.jsonl'}: {n_valid['few']} rows" in trainer.output
    assert "many: " in (result.run_dir / "summary.html").read_text()
    last = [one for one in records(result) if "eval/loss" in one][-1]
    tokens = {name: last[f"eval/loss_tokens/{name}"] for name in n_train}
    mean = sum(last[f"eval/loss/{name}"] * tokens[name] for name in tokens) / sum(tokens.values())
    assert last["eval/loss"] == pytest.approx(mean)
    assert (result.run_dir / "checkpoints" / "best").exists()


def test_a_resumed_run_takes_the_same_samples(trainer: Trainer) -> None:
    constant = OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=1)
    config = trainer.config(dataset=mixture(trainer), epochs=2, optimizer=constant, name="whole")
    whole = trainer.run(config)
    part = trainer.run(dataclasses.replace(config, name="part", max_steps=3))
    resumed = trainer.run(dataclasses.replace(config, name="part", resume=str(part.run_dir)))
    assert losses(resumed, "train/loss") == losses(whole, "train/loss")
    other = mixture(trainer)
    other.mix["few"]["weight"] = 0.5
    with pytest.raises(ConfigError, match=r"dataset\.mix\.few\.weight=0\.5 cannot change in a resumed run"):
        trainer.run(dataclasses.replace(config, dataset=other, name="part", resume=str(part.run_dir)))
    with pytest.raises(ConfigError, match=r"dataset\.train_path=a\.jsonl: the sources of mix are the rows to train on"):
        trainer.config(dataset=mixture(trainer, train_path="a.jsonl"))
