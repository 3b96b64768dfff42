"""Configuration of reward modelling. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reallm.config.args import CriticArgs, dataset_option
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError
from reallm.options import option


@dataclass(frozen=True)
class RWConfig(TrainingConfig):
    """Training of a reward model on pairs of a better and a worse answer.

    As a library: `RWConfig(model=CriticArgs(path="..."), dataset=PairedComparisonDatasetConfig(train_path="..."))`.

    Raises:
        ConfigError: a required value is missing, or a value is not allowed; names the key.
    """

    model: CriticArgs = field(
        default_factory=CriticArgs,
        metadata={"help": "the model to train: a language model, which gets a scalar head, or a reward model"},
    )
    dataset: Any = dataset_option("rw_pair", "pairs to train on")
    center_coef: float = option(
        0.0, "weight of the square of the sum of a pair's scores, which keeps scores around 0; 0.01 is usual"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.center_coef >= 0:
            raise ConfigError(f"center_coef={self.center_coef} must be at least 0")
