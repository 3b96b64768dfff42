"""A tiny Llama checkpoint, rows in files, and a configuration that trains the one on the other."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.experiments.run.runner import RunResult, run
from reallm.plugins import registry
from reallm.specs import Algorithm
from tests.helpers.tokenizers import tiny_tokenizer

HF_CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama checkpoint with random weights, 2 layers of 64."""
    folder = tmp_path_factory.mktemp("checkpoint")
    ReaLModel.from_llama(HF_CONFIG, seed=5).save_pretrained(folder, tokenizer=tiny_tokenizer())
    return folder


def write_rows(path: Path, numbers: Iterable[int]) -> Path:
    """Rows of different lengths, each with an answer of its own."""
    rows = []
    for number in numbers:
        words = random.Random(number).choices(["red", "blue", "old", "new", "sun", "sea", "tea"], k=2 + number % 4)
        rows.append({"prompt": f"Say {number}:", "answer": " " + " ".join(words)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclasses.dataclass
class Trainer:
    """Configurations that differ from a small run in what a test is about, and their runs."""

    folder: Path
    checkpoint: Path
    algorithm: Algorithm
    name: str | None = "sft"
    output: str = ""

    def config(self, n_rows: int = 10, n_valid: int = 0, batch_size: int = 4, **changes: Any) -> SFTConfig:
        """Three steps an epoch, unless changed; `dataset` may be given in whole."""
        train = write_rows(self.folder / f"train-{n_rows}.jsonl", range(n_rows))
        valid = write_rows(self.folder / "valid.jsonl", range(100, 100 + n_valid)) if n_valid else None
        dataset = registry.get("dataset", "prompt_answer").config_class()(
            train_path=str(train),
            valid_path=None if valid is None else str(valid),
            max_seqlen=64,
            train_bs_n_seqs=batch_size,
            valid_bs_n_seqs=2,
        )
        settings: dict[str, Any] = {
            "model": ModelArgs(path=str(self.checkpoint), device="cpu"),
            "dataset": dataset,
            "optimizer": OptimizerConfig(lr=1e-3),
            "eval_max_new_tokens": 8,
            "loggers": ["jsonl"],
            "output_dir": str(self.folder / "runs"),
        }
        return SFTConfig(**{**settings, **changes})

    def run(self, config: SFTConfig) -> RunResult:
        """Run without a terminal; `output` is what was printed."""
        printed = io.StringIO()
        try:
            return run(config, self.algorithm, name=self.name, console=Console(file=printed, width=200))
        finally:
            self.output = printed.getvalue()


@pytest.fixture
def trainer(tmp_path: Path, checkpoint: Path) -> Trainer:
    return Trainer(tmp_path, checkpoint, registry.get("algorithm", "sft"))


def mixture(trainer: Trainer, **changes: Any) -> Any:
    """A dataset of two sources, 20 and 60 rows, of which one in four is held out."""
    sources = {"few": (range(20), 0.4), "many": (range(100, 160), 0.6)}
    mix = {
        name: {"path": str(write_rows(trainer.folder / f"{name}.jsonl", numbers)), "weight": weight}
        for name, (numbers, weight) in sources.items()
    }
    settings = {"mix": mix, "valid_fraction": 0.25, "max_seqlen": 64, "train_bs_n_seqs": 16, "valid_bs_n_seqs": 4}
    return registry.get("dataset", "prompt_answer").config_class()(**{**settings, **changes})


def records(result: RunResult) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
