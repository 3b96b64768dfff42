"""Graphs of several calls resume bit for bit: controllers, running statistics, random numbers, mini-batches."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from reallm.algorithms.context import CallContext
from reallm.algorithms.sft.config import SFTConfig
from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.lr_schedule import lr_at
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import n_samples, select
from reallm.data.namedarray import NamedArray
from reallm.errors import NonFiniteError, PluginError
from reallm.experiments.runs.folder import RunFolder
from reallm.model.transformer import Transformer
from reallm.specs import Algorithm, ModelFunctionCall
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import Trainer

MINI_BATCHES = 4


class Normalized:
    """Noisy rewards, normalised by the running mean and standard deviation of all that came before."""

    def __init__(self, config: SFTConfig) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        rewards = []
        for name in batch.metadata["ids"]:
            reward = random.Random(context.seed_for("reward", name)).gauss(3.0, 2.0) + random.random()
            self.count += 1
            change = reward - self.mean
            self.mean += change / self.count
            self.squares += change * (reward - self.mean)
            rewards.append((reward - self.mean) / (math.sqrt(self.squares / self.count) + 1e-3))
        seqlens = {"rewards": [[1]] * n_samples(batch)}
        return NamedArray(rewards=torch.tensor(rewards)).with_metadata(seqlens=seqlens, ids=batch.metadata["ids"])

    def state(self) -> Mapping[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


class Controlled(SFTInterface):
    """Trains in mini-batches of random order, with a coefficient that follows the loss."""

    optimizer_steps = MINI_BATCHES
    metric_names = (*SFTInterface.metric_names, "coefficient")

    def __init__(self, config: SFTConfig) -> None:
        self.coefficient = 0.2

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        order = list(range(n_samples(batch)))
        random.Random(context.seed_for("mini-batches")).shuffle(order)
        for start in range(MINI_BATCHES):
            metrics = engine.train_batch(select(batch, order[start::MINI_BATCHES]), self)
        self.coefficient *= 1.1 if metrics["loss"] > 6.2 else 0.9
        return {**metrics, "coefficient": self.coefficient}

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        output = super().loss(network, batch)
        scale = 1 + self.coefficient * batch["rewards"].double().mean().tanh()
        return LossOutput(output.loss_sum * scale, output.stats)

    def state(self) -> Mapping[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.coefficient = state["coefficient"]


GRAPH = (
    ModelFunctionCall("score", "judge", "reward", ("input_ids",), ("rewards",)),
    ModelFunctionCall("train", "model", "train_step", ("input_ids", "loss_mask", "rewards")),
)


@pytest.fixture
def controlled(trainer: Trainer) -> Trainer:
    trainer.algorithm = Algorithm(SFTConfig, GRAPH, {"judge": Normalized, "model": Controlled})
    return trainer


def stop_within(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a signal while a step is computed."""
    reward = Normalized.reward

    def reward_and_stop(self: Normalized, batch: NamedArray, context: CallContext) -> NamedArray:
        if context.training and context.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return reward(self, batch, context)

    monkeypatch.setattr(Normalized, "reward", reward_and_stop)


@pytest.mark.parametrize("how", ["between", "within"])
@pytest.mark.parametrize("at", [1, 4])
def test_controllers_statistics_and_random_numbers_go_on(
    controlled: Trainer, monkeypatch: pytest.MonkeyPatch, how: str, at: int
) -> None:
    settings: dict[str, Any] = {"n_rows": 12, "n_valid": 3, "epochs": 2}
    random.seed(1)
    whole = controlled.run(controlled.config(name="whole", **settings))
    random.seed(1)
    with monkeypatch.context() as patch:
        (stop_after if how == "between" else stop_within)(patch, at)
        stopped = controlled.run(controlled.config(name="stopped", **settings))
    assert (stopped.interrupted, stopped.steps) == (True, at)
    saved = json.loads((stopped.checkpoint / "training_state" / "state.json").read_text())  # type: ignore[operator]
    assert set(saved["interfaces"]) == {"judge", "model"}
    random.seed(2)  # the state of Python's generator is restored, too
    resumed = controlled.run(controlled.config(name="stopped", resume=str(stopped.run_dir), **settings))
    assert resumed.steps == 6
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_the_learning_rate_reaches_its_end_with_the_last_mini_batch(
    controlled: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = OptimizerConfig(lr=1e-3, schedule="linear", warmup_steps=2)
    settings: dict[str, Any] = {"epochs": 2, "optimizer": optimizer, "n_rows": 12}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        stopped = controlled.run(controlled.config(name="stopped", **settings))
    n_steps = 6 * MINI_BATCHES
    assert stopped.metrics["train/lr"] == lr_at(3 * MINI_BATCHES, n_steps, optimizer)
    resumed = controlled.run(controlled.config(name="stopped", resume=str(stopped.run_dir), **settings))
    assert resumed.metrics["train/lr"] == lr_at(n_steps, n_steps, optimizer)


def test_an_error_between_mini_batches_leaves_the_last_save(
    controlled: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it the parameters are those of no step, so they are not saved."""
    loss, calls = Controlled.loss, iter(range(1000))

    def nan_in_the_third_mini_batch_of_step_3(self: Controlled, network: Transformer, batch: NamedArray) -> LossOutput:
        output = loss(self, network, batch)
        is_bad = next(calls) == 2 * MINI_BATCHES + 2
        return LossOutput(output.loss_sum * math.nan, output.stats) if is_bad else output

    settings: dict[str, Any] = {"n_rows": 12, "epochs": 2, "save_every": 1}
    whole = controlled.run(controlled.config(name="whole", **settings))
    with monkeypatch.context() as patch:
        patch.setattr(Controlled, "loss", nan_in_the_third_mini_batch_of_step_3)
        with pytest.raises(NonFiniteError):
            controlled.run(controlled.config(name="stopped", **settings))
    folder = RunFolder(whole.run_dir.parent / "stopped")
    assert folder.last_checkpoint.resolve().name == "step-000002"
    resumed = controlled.run(controlled.config(name="stopped", resume=str(folder.path), **settings))
    assert json.loads(folder.metrics.read_text().splitlines()[-1])["step"] == resumed.steps == 6


def test_a_reward_that_is_not_a_number_is_named_and_its_step_changes_nothing(
    controlled: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = Normalized.reward

    def nan_in_step_3(self: Normalized, batch: NamedArray, context: CallContext) -> NamedArray:
        outputs = reward(self, batch, context)
        return outputs.with_fields(rewards=outputs["rewards"] * (math.nan if context.step == 3 else 1.0))

    monkeypatch.setattr(Normalized, "reward", nan_in_step_3)
    named = r"^the call 'score' gives nan as 'rewards' for train-12.jsonl:\d+ and 3 other samples, "
    with pytest.raises(NonFiniteError, match=named):
        controlled.run(controlled.config(name="mine", n_rows=12))
    folder = RunFolder(controlled.folder / "runs" / "mine")
    state = json.loads((folder.last_checkpoint / "training_state" / "state.json").read_text())
    assert state["step"] == 2
    assert state["interfaces"]["judge"]["count"] == 8  # without the step that was given up


@pytest.mark.parametrize("method", ["state", "load_state"])
def test_a_broken_state_names_the_role(controlled: Trainer, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        stopped = controlled.run(controlled.config(name="stopped", n_rows=12))
    broken = {"state": lambda self: {"mean": torch.zeros(1)}, "load_state": lambda self, state: state["gone"]}
    monkeypatch.setattr(Normalized, method, broken[method])
    text = {"state": "has a state that is not made of JSON's types", "load_state": "failed in load_state: KeyError"}
    with pytest.raises(PluginError, match=rf"^the interface of 'judge', Normalized of tests\S+, {text[method]}"):
        controlled.run(controlled.config(name="stopped", n_rows=12, resume=str(stopped.run_dir)))
