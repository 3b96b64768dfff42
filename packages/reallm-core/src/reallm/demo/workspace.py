"""What all demos start from: a folder, a tokenizer, and a tiny model with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from reallm.atomic_files import atomic_write
from reallm.config.training import TrainingConfig
from reallm.demo.tokenizer import byte_tokenizer
from reallm.engine.real_model import ReaLModel
from reallm.errors import PluginError, UnknownNameError
from reallm.experiments.run.runner import RunResult, run
from reallm.experiments.runs.folder import RunFolder
from reallm.hf.conversion.storing import storing_family
from reallm.model.config import ReaLModelConfig
from reallm.plugins import registry
from reallm.plugins.known import suggested_first

MAX_SEQLEN = 256
"""As many positions as the model has."""


@dataclass(frozen=True)
class Workspace:
    """The folder of a demo, with the untrained model and the data in it."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    untrained: ReaLModel
    console: Console

    @classmethod
    def make(cls, output_dir: str | Path, seed: int, datasets: Iterable[str], console: Console) -> Workspace:
        """Make the folder `demo-<date>` in `output_dir` and write an untrained model into it.

        Args:
            output_dir: folder to make it in.
            seed: seed of the weights.
            datasets: names of the datasets that the demo reads its data with.
            console: console to print on.

        Raises:
            PluginError: a package that the demo needs is not installed; says what to install.
        """
        tokenizer = byte_tokenizer()
        sizes = json.loads(files("reallm.demo").joinpath("model.json").read_text(encoding="utf-8"))
        architecture = ReaLModelConfig(vocab_size=len(tokenizer), **sizes)
        family = _installed_family(architecture, datasets)
        folder = RunFolder.create(output_dir, None, default_prefix="demo").path
        untrained = _untrained_model(family, architecture, tokenizer, seed)
        untrained.save_pretrained(folder / "untrained", tokenizer=tokenizer)
        return cls(folder, tokenizer, untrained, console)

    @property
    def untrained_path(self) -> str:
        """Checkpoint of the untrained model."""
        return str(self.folder / "untrained")

    def say(self, text: str) -> None:
        """Print text as it is."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def dataset(
        self, name: str, train: Iterable[Mapping[str, str]], valid: Iterable[Mapping[str, str]], **settings: Any
    ) -> Any:
        """Write rows into the folder; returns the configuration of the dataset that reads them.

        Args:
            name: name of the dataset.
            train: rows to train on.
            valid: rows to evaluate on.
            settings: further settings of the dataset.
        """
        paths = {"train_path": self.folder / "data" / f"{name}_train.jsonl"}
        paths["valid_path"] = self.folder / "data" / f"{name}_valid.jsonl"
        for path, rows in zip(paths.values(), (train, valid), strict=True):
            with atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config_class = registry.get("dataset", name).config_class()
        return config_class(**{key: str(path) for key, path in paths.items()}, **settings)

    def run_settings(self, name: str, n_steps: int, seed: int, *, evaluations: int) -> dict[str, Any]:
        """Settings of a run of so many steps in the folder, with evaluations at equal distances."""
        return {
            "epochs": n_steps,
            "max_steps": n_steps,
            "eval_every": max(1, n_steps // evaluations),
            "output_dir": str(self.folder),
            "name": name,
            "seed": seed,
        }

    def train(self, config: TrainingConfig, algorithm: str) -> RunResult:
        """Run an algorithm as its command does."""
        with _one_thread():
            return run(config, registry.get("algorithm", algorithm), name=algorithm, console=self.console)


def _installed_family(architecture: ReaLModelConfig, datasets: Iterable[str]) -> str:
    """An installed family that can store this architecture.

    Raises:
        PluginError: there is no such family, or a dataset is not installed.
    """
    found = storing_family(architecture)
    missing = []
    for dataset in datasets:
        try:
            registry.get("dataset", dataset)
        except UnknownNameError:
            missing.append(registry.install_hint("dataset", dataset).removeprefix("pip install "))
    missing += [] if found else [suggested_first("family")[0]]
    if missing or found is None:
        raise PluginError(f"the demo needs more than the core: pip install {' '.join(dict.fromkeys(missing))}")
    return found


def _untrained_model(
    family: str, architecture: ReaLModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> ReaLModel:
    hf_config = getattr(ReaLModel, f"config_to_{family}")(architecture)
    hf_config.eos_token_id = hf_config.pad_token_id = tokenizer.eos_token_id
    model: ReaLModel = getattr(ReaLModel, f"from_{family}")(hf_config, dtype=torch.float32, seed=seed)
    return model


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context that computes with one thread: for such small work, more threads are slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
