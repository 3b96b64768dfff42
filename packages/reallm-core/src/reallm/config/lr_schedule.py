"""The learning rate of each optimizer step, a pure function that equals transformers' schedules. Imports no torch."""

from __future__ import annotations

import math

from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ConfigError


def lr_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of optimizer step `step`, from 1 to `total_steps`.

    It is 0 at step 1, rises linearly, reaches `lr` at the first step after the warm-up, and falls such that it would
    reach `lr * min_lr_ratio` at step `total_steps + 1`. With 6 steps, 2 of them warm-up, and schedule `linear`:
    `lr * [0, 1/2, 1, 3/4, 2/4, 1/4]`.

    This is what transformers' `get_cosine_schedule_with_warmup`, `get_linear_schedule_with_warmup`,
    `get_constant_schedule_with_warmup` and `get_cosine_with_min_lr_schedule_with_warmup` give for the same numbers.
    """
    warmup, done = warmup_steps(total_steps, config), step - 1
    if done < warmup:
        return config.lr * (done / warmup)
    if config.schedule == "constant":
        return config.lr
    falling = max(1, total_steps - warmup)
    if config.schedule == "linear":
        share = max(0.0, (total_steps - done) / falling)
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (done - warmup) / falling)))
    return config.lr * (share * (1.0 - config.min_lr_ratio) + config.min_lr_ratio)


def warmup_steps(total_steps: int, config: OptimizerConfig) -> int:
    """Steps of the warm-up; a `warmup_ratio` is rounded up, but leaves at least one step after the warm-up."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return min(math.ceil(config.warmup_ratio * total_steps), max(0, total_steps - 1))


def check_warmup(config: OptimizerConfig, total_steps: int, limit: str) -> None:
    """Check that the warm-up ends before training does.

    Args:
        config: configuration of the optimizer.
        total_steps: number of training steps.
        limit: setting that determines this number, for the end of the message: `max_steps=10`.

    Raises:
        ConfigError: `warmup_steps` is too large.
    """
    if config.warmup_steps is not None and config.warmup_steps >= total_steps:
        raise ConfigError(f"optimizer.warmup_steps={config.warmup_steps} must be less than {limit}")
