"""Configuration of supervised fine-tuning. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from reallm.config.args import ModelArgs
from reallm.config.training import TrainingConfig


@dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning of a model on prompt/answer pairs or conversations.

    As a library: `SFTConfig(model=ModelArgs(path="..."), dataset=PromptAnswerDatasetConfig(train_path="..."))`.

    Raises:
        ConfigError: a required value is missing, or a value is not allowed; names the key.
    """

    model: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the model to train"})
