"""Configuration of supervised fine-tuning. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reallm.engine.optimizer_config import OptimizerConfig
from reallm.errors import ConfigError
from reallm.experiments.config import ModelArgs, dataset_option
from reallm.experiments.config_dataset import batch_size, splits
from reallm.experiments.schema import check_values
from reallm.options import option

if TYPE_CHECKING:
    from reallm.data.datasets import Dataset


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning of a model on prompt/answer pairs or conversations.

    As a library: `SFTConfig(model=ModelArgs(path="..."), dataset=PromptAnswerDatasetConfig(train_path="..."))`.

    Raises:
        ConfigError: a required value is missing, or a value is not allowed; names the key.
    """

    model: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the model to train"})
    dataset: Any = dataset_option("prompt_answer", "what to train on")
    optimizer: OptimizerConfig = field(
        default_factory=OptimizerConfig, metadata={"help": "AdamW and its learning-rate schedule"}
    )

    epochs: int = option(1, "passes over the training data")
    max_steps: int | None = option(None, "stop after so many optimizer steps, even within an epoch; null: no limit")
    max_tokens_per_microbatch: int = option(
        8192, "tokens computed at once; lower it when memory runs out: results stay the same"
    )
    eval_every: int | None = option(None, "optimizer steps between evaluations; null: after each epoch and at the end")
    save_every: int | None = option(None, "optimizer steps between checkpoints; null: only at the end")
    loggers: list[str] = option(["jsonl", "tensorboard"], "where metrics go; `reallm plugins` lists what is installed")
    output_dir: str = option("runs", "folder that holds the run folders")
    name: str | None = option(None, "name of the run folder in output_dir; null: sft-<date and time>")
    seed: int = option(1, "seed of all random choices; the same seed gives the same run")

    def __post_init__(self) -> None:
        check_values(self)
        at_least_one = {
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "max_tokens_per_microbatch": self.max_tokens_per_microbatch,
            "eval_every": self.eval_every,
            "save_every": self.save_every,
            "dataset.train_bs_n_seqs": batch_size(self.dataset, "train"),
            "dataset.valid_bs_n_seqs": batch_size(self.dataset, "valid"),
        }
        for key, value in at_least_one.items():
            if value is not None and value < 1:
                raise ConfigError(f"{key}={value} must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must be 0 or more")

    def datasets(self) -> dict[str, Dataset]:
        """The training data as `"train"` and, if the dataset's `valid_path` is given, held-out data as `"valid"`."""
        return splits(self.dataset)
