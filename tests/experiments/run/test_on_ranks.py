"""Runs on two ranks: callbacks that differ between them, early stopping, and rows that one rank tokenizes for both."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.optimizer import OptimizerConfig
from reallm.config.parallel import ParallelArgs
from reallm.data.tokenization import tokenized_rows
from reallm.errors import PluginError
from reallm.experiments.run.runner import RunResult, run
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import read_run
from reallm.launch.job import Job
from reallm.plugins import registry
from reallm.plugins.finder import Plugin
from reallm.plugins.loader import Offer
from reallm.specs import Callback, CallbackSpec, RunView
from tests.experiments.conftest import Trainer
from tests.helpers.ranks import on_ranks

PLUGIN = Plugin("my-callbacks", "1.0", "tests.experiments", ("callback.mine",))
DP2, ZERO3, TP2 = ParallelArgs(dp=2), ParallelArgs(dp=2, zero=3), ParallelArgs(tp=2)


def train(rank: int, config: SFTConfig) -> RunResult:
    torch.set_num_threads(1)
    store = dist.PrefixStore(config.output_dir, dist.distributed_c10d._get_default_store())
    return run(config, registry.get("algorithm", "sft"), name="sft", job=Job(rank, 2, rank, 2, store))


def train_with(rank: int, config: SFTConfig, cls: type) -> tuple[int, str | None]:
    """Train with a callback named `mine`; the steps done, and the error."""
    offers = {"mine": Offer("callback", "mine", CallbackSpec(cls), PLUGIN)}
    modules = [f"reallm.experiments.run.{user}.callback_offers" for user in ("plan", "trainer")]
    with patch(modules[0], lambda names: offers), patch(modules[1], lambda names: offers):
        try:
            return train(rank, config).steps, None
        except PluginError as error:
            return 0, str(error)


def with_callback(config: SFTConfig, cls: type) -> list[tuple[int, str | None]]:
    return on_ranks(2, train_with, dataclasses.replace(config, callbacks=["mine"]), cls)


def lines(folder: Path) -> list[dict[str, float]]:
    """All metrics of a run but those that depend on the machine."""
    return [
        {name: value for name, value in json.loads(line).items() if not name.endswith(("tokens_per_s", "memory_gib"))}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def evaluated(folder: Path) -> list[float]:
    return [line["step"] for line in lines(folder) if "eval/loss" in line]


class Asking(Callback):
    """Each rank asks for something of its own."""

    def on_step_end(self, run: RunView) -> None:
        if (run.step, run.rank) == (1, 1):
            run.request_save()
        if (run.step, run.rank) == (2, 0):
            run.request_evaluation()
        if (run.step, run.rank) == (3, 1):
            run.request_stop("rank 1 has seen enough")


def test_what_one_rank_asks_for_is_done_by_all(trainer: Trainer) -> None:
    config = trainer.config(n_valid=3, epochs=2, keep_last=None, name="a", parallel=ZERO3)
    assert with_callback(config, Asking) == [(3, None)] * 2
    found = read_run(trainer.folder / "runs" / "a")
    assert (found.status, found.stop_reason) == ("done", "callback 'mine' asked to stop: rank 1 has seen enough")
    assert list(RunFolder(found.path).saved_steps()) == [1, 3]
    assert evaluated(found.path) == [0, 2, 3]


class Failing(Callback):
    """Raises on rank 1, in the method that the run's name says."""

    def _fail(self, run: RunView, where: str) -> None:
        if run.rank == 1 and run.run_dir.name == where:
            raise ValueError("no luck")

    def on_train_begin(self, run: RunView) -> None:
        self._fail(run, "on_train_begin")

    def on_step_end(self, run: RunView) -> None:
        self._fail(run, "on_step_end")

    def on_evaluate(self, run: RunView) -> None:
        self._fail(run, "on_evaluate")

    def on_save(self, run: RunView, checkpoint: Path) -> None:
        self._fail(run, "on_save")

    def on_train_end(self, run: RunView) -> None:
        self._fail(run, "on_train_end")


class FailingState(Callback):
    def state(self) -> Mapping[str, Any]:
        return {"step": object() if dist.get_rank() == 1 else 1}


class FailingConstructor(Callback):
    def __init__(self) -> None:
        if dist.get_rank() == 1:
            raise ValueError("no luck")


class FailingLoad(Callback):
    def state(self) -> Mapping[str, Any]:
        return {"step": 1}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if dist.get_rank() == 1:
            raise ValueError("no luck")


def same_error(by_rank: list[tuple[int, str | None]]) -> str:
    (_, error), (_, other) = by_rank
    assert error is not None
    assert error == other
    assert "\n" not in error
    return error


@pytest.mark.parametrize("where", ["on_train_begin", "on_step_end", "on_evaluate", "on_save", "on_train_end", "state"])
def test_one_that_raises_on_one_rank_ends_the_run_on_all(trainer: Trainer, where: str) -> None:
    config = trainer.config(n_valid=3, save_every=2, epochs=2, name=where, parallel=DP2)
    error = same_error(with_callback(config, FailingState if where == "state" else Failing))
    assert error.startswith(f"rank 1: callback 'mine' of my-callbacks 1.0 failed in {where}: ")
    found = read_run(trainer.folder / "runs" / where)
    assert (found.status, found.error) == ("failed", error)
    saved = {"on_train_begin": 0, "on_evaluate": 0, "on_step_end": 1, "on_train_end": 6}.get(where, 2)
    assert max(RunFolder(found.path).saved_steps(), default=0) == saved


def test_one_that_cannot_be_made_or_restored_on_one_rank_trains_on_none(trainer: Trainer) -> None:
    config = trainer.config(max_steps=1, name="a", parallel=DP2)
    assert "rank 1: callback 'mine' of my-callbacks 1.0 cannot be constructed: ValueError" in same_error(
        with_callback(config, FailingConstructor)
    )
    assert not list((trainer.folder / "runs").glob("*"))
    assert with_callback(config, FailingLoad) == [(1, None)] * 2
    resumed = dataclasses.replace(config, max_steps=2, resume="auto")
    assert "rank 1: callback 'mine' of my-callbacks 1.0 failed in load_state: ValueError" in same_error(
        with_callback(resumed, FailingLoad)
    )


class Counting(Callback):
    """Counts in steps of `rank + 1`, and stops the run if rank 1 has not counted all of its steps."""

    def __init__(self) -> None:
        self.n = 0

    def on_step_end(self, run: RunView) -> None:
        self.n += run.rank + 1
        if self.n != run.step * (run.rank + 1):
            run.request_stop(f"rank {run.rank} has counted to {self.n}")

    def state(self) -> Mapping[str, Any]:
        return {"n": self.n}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.n = state["n"]


def test_each_rank_gets_its_own_state_back(trainer: Trainer) -> None:
    constant = OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0)
    config = trainer.config(epochs=2, max_steps=2, name="a", parallel=DP2, optimizer=constant)
    assert with_callback(config, Counting) == [(2, None)] * 2
    assert with_callback(dataclasses.replace(config, max_steps=4, resume="auto"), Counting) == [(4, None)] * 2
    assert read_run(trainer.folder / "runs" / "a").stop_reason is None


class Interrupting(Callback):
    """Sends rank 1 the signal that Ctrl-C would, after step 2."""

    def on_step_end(self, run: RunView) -> None:
        if (run.step, run.rank) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("parallel", [ZERO3, TP2], ids=str)
def test_early_stopping_is_the_same_after_an_interruption(trainer: Trainer, parallel: ParallelArgs) -> None:
    diverges = OptimizerConfig(lr=0.3, schedule="constant", warmup_steps=0)
    config = trainer.config(
        n_valid=4, epochs=20, eval_every=1, stop_after_evals_without_gain=3, optimizer=diverges, parallel=parallel,
        name="whole",
    )  # fmt: skip
    whole, _ = on_ranks(2, train, config)
    part = dataclasses.replace(config, name="part")
    assert with_callback(part, Interrupting) == [(2, None)] * 2
    assert read_run(trainer.folder / "runs" / "part").status == "stopped"
    one, other = on_ranks(2, train, dataclasses.replace(part, resume="auto"))
    assert whole.steps == one.steps == other.steps == 4
    assert lines(one.run_dir) == lines(whole.run_dir)
    reasons = [read_run(result.run_dir).stop_reason for result in (whole, one)]
    assert reasons[0] == reasons[1]
    assert reasons[0] is not None
    assert reasons[0].startswith("eval/loss has not improved in 3 evaluations")


def count_tokenizations(rank: int, config: SFTConfig) -> int:
    with patch.object(tokenized_rows, "encode_source", wraps=tokenized_rows.encode_source) as encode:
        train(rank, config)
    return encode.call_count


def test_one_rank_tokenizes_a_large_file_and_both_read_it(trainer: Trainer) -> None:
    config = trainer.config(max_steps=2, parallel=DP2, name="cached")
    rows = [{"instruction": f"Say {n}:", "output": " red sun", "unused": "x" * 1_000_000} for n in range(9)]
    large = trainer.folder / "large.jsonl"
    large.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = dataclasses.replace(config.dataset, train_path=str(large), cache_dir=str(trainer.folder / "cache"))
    config = dataclasses.replace(config, dataset=dataset)
    assert sum(on_ranks(2, count_tokenizations, config)) == 1
    assert on_ranks(2, count_tokenizations, dataclasses.replace(config, name="again")) == [0, 0]
    in_memory = dataclasses.replace(config, dataset=dataclasses.replace(dataset, cache_dir=None), name="in-memory")
    assert on_ranks(2, count_tokenizations, in_memory) == [1, 1]
    runs = trainer.folder / "runs"
    assert lines(runs / "cached") == lines(runs / "again") == lines(runs / "in-memory")
