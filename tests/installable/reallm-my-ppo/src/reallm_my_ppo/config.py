"""Configuration of `reallm my-ppo`. Imports no torch."""

from dataclasses import dataclass

from reallm import ConfigError, option
from reallm.algorithms.ppo.config import PPOConfig


@dataclass(frozen=True)
class MyPPOConfig(PPOConfig):
    """The keys of `reallm ppo`, and one more."""

    token_cost: float = option(0.01, "what each token of an answer takes from the score of the reward model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.token_cost < float("inf"):
            raise ConfigError(f"token_cost={self.token_cost} must be at least 0 and finite")
