"""The calls of a graph that reward answers. Imports no torch."""

from __future__ import annotations

from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.keys import ANSWERS
from reallm.specs import ModelFunctionCall


def reward_calls(config: RewardedConfig, prefix: str = "") -> list[ModelFunctionCall]:
    """The calls that reward answers, by functions and by a model.

    Args:
        config: the configuration.
        prefix: beginning of the keys that they read and write, and of their names.
    """
    answers = tuple(f"{prefix}{key}" for key in ANSWERS)
    calls = []
    if config.reward.functions:
        outputs = (f"{prefix}reward_parts", f"{prefix}reward_given")
        calls.append(ModelFunctionCall(f"{prefix}rew_fn", f"{prefix}reward_functions", "reward", answers, outputs))
    if config.reward.path:
        calls.append(ModelFunctionCall(f"{prefix}rew_inf", "reward", "inference", answers, (f"{prefix}scores",)))
    return calls
