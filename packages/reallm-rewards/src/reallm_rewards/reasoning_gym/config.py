"""Configuration of the dataset `reasoning_gym`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reallm.config.group import ConfigGroup
from reallm.errors import ConfigError
from reallm.options import REQUIRED, option
from reallm_rewards.reasoning_gym.tasks import make_task

INSTRUCTION = "Give the final answer, and nothing else, between <answer> and </answer>."


@dataclass
class ReasoningGymConfig(ConfigGroup, group="dataset"):
    """Questions of a task of reasoning-gym, made by a seed."""

    task: str = option(REQUIRED, "task of reasoning-gym, such as basic_arithmetic")
    parameters: dict[str, Any] = option({}, "parameters of the task, such as parameters.max_terms=3")
    size: int = option(1000, "number of questions to train on")
    valid_size: int = option(0, "number of other questions to evaluate on; 0: no evaluation")
    seed: int = option(1, "seed of the questions")
    instruction: str | None = option(INSTRUCTION, "what follows each question; null: nothing")
    max_prompt_len: int = option(1024, "longest prompt, in tokens; longer ones are dropped")
    chat_template: str | None = option(None, "chat template to use instead of the checkpoint's; null: that")
    train_bs_n_seqs: int = option(32, "batch size: prompts in a step")
    valid_bs_n_seqs: int = option(32, "prompts in an evaluation batch")

    def __post_init__(self) -> None:
        lowest = {"size": 1, "valid_size": 0, "seed": 0, "max_prompt_len": 1}
        for name, least in (lowest | {"train_bs_n_seqs": 1, "valid_bs_n_seqs": 1}).items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")

    def check(self) -> None:
        """Raise ConfigError unless reasoning-gym is installed and has the task with these parameters."""
        make_task(self.task, self.parameters)

    def split_args(self) -> dict[str, dict[str, Any]]:
        """Split -> arguments of `ReasoningGymDataset`; each question is in one split only."""
        args = {name: getattr(self, name) for name in ("task", "parameters", "instruction", "max_prompt_len")}
        found = {"train": {**args, "size": self.size, "seed": self.seed}}
        if self.valid_size:
            found["valid"] = {**args, "size": self.valid_size, "seed": self.seed + self.size}
        return found
