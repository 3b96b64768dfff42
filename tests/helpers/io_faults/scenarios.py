"""What is run with faults: a small training, one that is resumed, text from a checkpoint in parts, `reallm verify`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reallm.engine.real_model import ReaLModel
from tests.helpers.io_faults.sweep import KILLED, Scenario
from tests.helpers.jobs import HF_CONFIG, make_inputs, sft
from tests.helpers.tokenizers import tiny_tokenizer

WITH_CACHE = "tests.helpers.io_faults.scenarios:run_with_cache"
OF_THE_MACHINE = ("tokens_per_s", "memory_gib")
LOST_WHEN_TOLD = {
    "summary.html": "no summary page: ",
    "loss.png": "no plot of the losses: ",
    "samples": "no samples: ",
    "status": "no summary: ",
}
"""What of a run is for people alone, and may be missing if the run says so."""


def make_small_inputs(folder: Path) -> Path:
    """Inputs of a run with a model of one layer in several files, so that a run makes few calls and takes a second."""
    folder.mkdir()
    make_inputs(folder)
    shutil.rmtree(folder / "model")
    model = ReaLModel.from_llama({**HF_CONFIG, "num_hidden_layers": 1}, seed=5)
    model.save_pretrained(folder / "model", tokenizer=tiny_tokenizer(), max_shard_size="40KB")
    return folder


def training_arguments(inputs: Path, folder: Path, *more: str) -> list[str]:
    """A run of four steps that saves and evaluates after each second one, and goes on if it is there."""
    return sft(
        inputs, folder, "name=run", "resume=auto", "max_steps=4", "epochs=4", "save_every=2", "eval_every=2",
        "keep_last=1", "best_metric=eval/loss", "eval_generations=1", "eval_max_new_tokens=2",
        f"dataset.valid_path={inputs / 'valid.jsonl'}", f"dataset.cache_dir={folder / 'cache'}", *more,
    )  # fmt: skip


def training(inputs: Path, *more: str) -> Scenario:
    """A new run."""
    return Scenario(
        lambda folder: training_arguments(inputs, folder, *more),
        lambda folder, ended: state_of(folder),
        inputs=[inputs],
        told=LOST_WHEN_TOLD,
        target=WITH_CACHE,
    )


def resuming(inputs: Path, *more: str) -> Scenario:
    """A run that was killed in its fourth step, after a save in its second."""
    return replace(training(inputs, *more), killed_by="tests.helpers.io_faults.scenarios:run_until_killed")


def generating(inputs: Path) -> Scenario:
    """Text from a checkpoint in several files."""
    return Scenario(
        lambda folder: [
            "generate",
            "--model",
            str(inputs / "model"),
            "--max-new-tokens",
            "4",
            "--device",
            "cpu",
            "Say 1:",
        ],
        lambda folder, ended: {"text": ended.out},
        inputs=[inputs],
        goes_on=False,
    )


def verifying(run: Path) -> Scenario:
    """A check of a run's checkpoints."""
    return Scenario(
        lambda folder: ["verify", str(run)], lambda folder, ended: {"text": ended.out}, inputs=[run], goes_on=False
    )


def run_with_cache(arguments: Sequence[str]) -> int:
    """The command, which caches tokens even of small files; it neither estimates its memory nor draws its curves, which
    take long: the picture that it writes is empty.
    """
    from matplotlib.figure import Figure

    from reallm.cli.main import run
    from reallm.data.tokenization import cache
    from reallm.experiments.reports import png, write
    from reallm.training import memory

    cache.entry_for.__kwdefaults__["min_bytes"] = 0  # type: ignore[index]
    memory.traced_activations = lambda *_: None  # type: ignore[assignment]
    write.save_plot = lambda _, path: png._save(Figure(figsize=(1, 1)), path)
    return run(arguments)


def run_until_killed(arguments: Sequence[str], step: int = 4) -> int:
    """The command, which ends as if it were killed when a step begins and the save before it is complete."""
    from reallm.experiments.run.trainer import Trainer

    train_step = Trainer._train_step

    def stopping(trainer: Trainer, at: int) -> None:
        if at == step:
            trainer._finish_save()
            os._exit(KILLED)
        train_step(trainer, at)

    Trainer._train_step = stopping  # type: ignore[method-assign]
    return run_with_cache(arguments)


def state_of(folder: Path) -> dict[str, Any]:
    """All of a run that the same run has again: weights, optimizer, metrics, reports that exist; and leftovers."""
    run, saves = folder / "run", folder / "run" / "checkpoints"
    found: dict[str, Any] = {
        **{path.name: "is there" for path in run.iterdir()},
        "saves": sorted(path.name for path in saves.iterdir()),
        "last": str((saves / "last").readlink()),
        "best": str((saves / "best").readlink()),
        "metrics": numbers_of(run / "metrics.jsonl"),
        "samples": (run / "samples.jsonl").read_text(),
        "status": json.loads((run / "summary.json").read_text())["status"],
        "leftovers": sorted(
            str(path.relative_to(folder))
            for path in folder.rglob(".*")
            if path != run / ".lock"
        ),
    }  # fmt: skip
    for path in sorted((saves / "last").resolve().rglob("*")):
        if path.is_file() and path.name not in ("checksums.json", "state.json"):
            found[str(path.relative_to(saves))] = hashlib.sha256(path.read_bytes()).hexdigest()
    state = json.loads((saves / "last" / "training_state" / "state.json").read_text())
    found["state"] = {name: value for name, value in state.items() if name not in ("seconds", "metrics")}
    return found


def numbers_of(file: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl` without those numbers that are the machine's."""
    lines = map(json.loads, file.read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.endswith(OF_THE_MACHINE)} for line in lines]
