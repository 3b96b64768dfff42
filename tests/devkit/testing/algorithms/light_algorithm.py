"""Configurations and the graph of the algorithm that is broken in many ways. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reallm import ModelArgs, ModelFunctionCall, TrainingConfig, option
from reallm.config.args import dataset_option
from reallm.errors import ConfigError


@dataclass(frozen=True)
class GoodConfig(TrainingConfig):
    """Two answers to each prompt."""

    actor: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the model to train"})
    dataset: Any = dataset_option("prompt", "prompts to answer")
    decay: float = option(0.5, "how fast the baseline forgets")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay={self.decay} must be between 0 and 1")


@dataclass(frozen=True)
class UnexplainedConfig(GoodConfig):
    """Has a key without a text."""

    size: int = 1


@dataclass(frozen=True)
class ForgetfulConfig(GoodConfig):
    """Is not read as it was written."""

    n: int = option(1, "grows each time")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n", self.n + 1)


@dataclass(frozen=True)
class AcceptsNanConfig(GoodConfig):
    """A comparison with NaN is false."""

    scale: float = option(1.0, "scale of rewards")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 0:
            raise ConfigError(f"scale={self.scale} must not be negative")


@dataclass(frozen=True)
class RaisesConfig(GoodConfig):
    """Raises something else than a ConfigError."""

    parts: int = option(1, "parts of a step")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "max_steps", (self.max_steps or 1) // self.parts)


@dataclass(frozen=True)
class UnnamedConfig(GoodConfig):
    """Refuses a value without naming its key."""

    parts: int = option(1, "parts of a step")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts < 1:
            raise ConfigError("the value is too small")


COMPLETIONS = ("input_ids", "prompt_lens")


def good_graph(config: GoodConfig) -> Sequence[ModelFunctionCall]:
    """Generate, judge, train."""
    return [
        ModelFunctionCall("gen", "actor", "generate", ("prompt_ids",), COMPLETIONS),
        ModelFunctionCall("judge", "rewards", "reward", COMPLETIONS, ("rewards",)),
        ModelFunctionCall("train", "actor", "train_step", (*COMPLETIONS, "rewards")),
    ]
