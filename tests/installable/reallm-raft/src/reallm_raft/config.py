"""Configuration and graph of the algorithm `raft`. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reallm import CallArgs, ConfigError, ModelArgs, ModelFunctionCall, TrainingConfig, option
from reallm.config.args import dataset_option


@dataclass(frozen=True)
class RaftConfig(TrainingConfig):
    """The keys of `reallm raft` beyond those of every training."""

    dataset: Any = dataset_option("prompt", "prompts to answer")
    actor: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the model to train"})
    actor_gen: CallArgs = field(default_factory=CallArgs, metadata={"help": "where answers are generated"})
    actor_train: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the model is trained"})
    reward: str = option(
        "reallm_raft.rewards:plain", "function that scores an answer, as module:function; more is better"
    )
    n: int = option(4, "answers to each prompt, of which the best is trained on")
    max_new_tokens: int = option(32, "longest answer, in tokens")
    temperature: float = option(1.0, "temperature at which answers are sampled")

    def __post_init__(self) -> None:
        super().__post_init__()
        if ":" not in self.reward:
            raise ConfigError(f"reward={self.reward} is not a function; write module:function")
        for key in ("n", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)} must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be more than 0, or all answers are the same")


def calls(config: RaftConfig) -> Sequence[ModelFunctionCall]:
    """Answer each prompt, score the answers, train on the best ones."""
    answers = ("input_ids", "prompt_lens")
    return [
        ModelFunctionCall("actor_gen", "actor", "generate", inputs=("prompt_ids",), outputs=answers),
        ModelFunctionCall("score", "scorer", "reward", inputs=answers, outputs=("scores",)),
        ModelFunctionCall("actor_train", "actor", "train_step", inputs=(*answers, "scores")),
    ]
