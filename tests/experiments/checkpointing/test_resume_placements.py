"""A run whose calls have layouts of their own is saved when it fails, and goes on in any other placement."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from reallm.checkpoint.reader import open_checkpoint
from reallm.config.args import CallArgs, ModelArgs, dataset_option
from reallm.config.optimizer import OptimizerConfig
from reallm.config.training import TrainingConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import NonFiniteError
from reallm.experiments.run.runner import run
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import read_run
from reallm.launch.job import Job
from reallm.plugins import registry
from reallm.specs import Algorithm
from tests.algorithms.three_roles import ALGORITHM, ActorInterface
from tests.helpers.jobs import make_inputs
from tests.helpers.ranks import on_ranks

STEPS_BEFORE, STEPS = 2, 4
ON_THREE = {"actor_gen": "dp2", "ref_inf": "dp1@0", "reward": "dp1@2", "actor_train": "tp2@1-2"}
ON_TWO = {"actor_gen": "dp1", "ref_inf": "tp2", "actor_train": "pp2"}
OPTIMIZER = OptimizerConfig(lr=1e-3, eps=1e-3, schedule="constant", warmup_ratio=0.0, max_grad_norm=1e6)


@dataclass(frozen=True)
class Config(TrainingConfig):
    """The algorithm with rows."""

    dataset: Any = dataset_option("prompt", "prompts")
    actor: ModelArgs = field(default_factory=ModelArgs)
    ref: ModelArgs = field(default_factory=ModelArgs)
    actor_gen: CallArgs = field(default_factory=CallArgs)
    ref_inf: CallArgs = field(default_factory=CallArgs)
    reward: CallArgs = field(default_factory=CallArgs)
    actor_train: CallArgs = field(default_factory=CallArgs)


def configuration(inputs: Path, output: Path, layouts: Mapping[str, str]) -> Config:
    dataset = registry.get("dataset", "prompt").config_class()(
        train_path=str(inputs / "train.jsonl"), valid_path=str(inputs / "valid.jsonl"), train_bs_n_seqs=4
    )
    model = ModelArgs(path=str(inputs / "model"), device="cpu")
    calls: dict[str, Any] = {name: CallArgs(layout) for name, layout in layouts.items()}
    return Config(
        actor=model,
        ref=model,
        dataset=dataset,
        optimizer=OPTIMIZER,
        loggers=["jsonl"],
        max_steps=STEPS,
        eval_every=2,
        eval_max_new_tokens=3,
        output_dir=str(output),
        name="a",
        **calls,
    )


def train(rank: int, n_ranks: int, config: Config, breaks_at: int | None = None) -> str | None:
    """Train in float64, as one of a job's processes; returns the error of a loss that is NaN at a step."""
    torch.set_num_threads(1)
    job = Job()
    if n_ranks > 1:
        store = dist.PrefixStore(config.output_dir, dist.distributed_c10d._get_default_store())
        job = Job(rank, n_ranks, rank, n_ranks, store)
    algorithm = Algorithm(Config, ALGORITHM.graph, ALGORITHM.interfaces)
    with (
        patch("reallm.experiments.run.setup.choose_dtype", lambda *_: torch.float64),
        patch.object(ActorInterface, "breaks_at", breaks_at),
    ):
        try:
            run(config, algorithm, job=job)
        except NonFiniteError as error:
            return str(error)
    return None


def trained(n_ranks: int, config: Config) -> RunFolder:
    if n_ranks == 1:
        train(0, 1, config)
    else:
        on_ranks(n_ranks, train, n_ranks, config)
    return RunFolder(Path(config.output_dir) / "a")


def values(folder: RunFolder, name: str) -> list[float]:
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [record[name] for record in records if name in record]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_it_goes_on_in_another_placement(inputs: Path, tmp_path: Path) -> None:
    alone = trained(1, configuration(inputs, tmp_path / "alone", {}))
    errors = on_ranks(3, train, 3, configuration(inputs, tmp_path / "first", ON_THREE), STEPS_BEFORE + 1)
    assert errors[0].startswith("step 3: the loss of ")
    assert errors == errors[:1] * 3
    first = RunFolder(tmp_path / "first" / "a")
    assert read_run(first.path).status == "failed"
    assert (first.checkpoint(STEPS_BEFORE) / "training_state" / "rank-2.json").is_file()
    assert len(first.samples.read_text().splitlines()) == 2 * 3
    for number, (n_ranks, layouts) in enumerate([(2, ON_TWO), (1, {})]):
        copy = tmp_path / f"then-{number}"
        shutil.copytree(tmp_path / "first", copy, symlinks=True)
        resumed = dataclasses.replace(configuration(inputs, copy, layouts), resume=str(copy / "a"))
        found = trained(n_ranks, resumed)
        for name in ("train/loss", "train/reward", "eval/reward"):
            assert values(found, name) == pytest.approx(values(alone, name), rel=1e-9)
        weights, expected = (
            open_checkpoint(folder.checkpoint(STEPS) / "training_state" / "actor") for folder in (found, alone)
        )
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-9, atol=1e-9)
        ReaLModel.from_pretrained(found.checkpoint(STEPS))
