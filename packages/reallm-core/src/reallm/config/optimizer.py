"""Configuration of the optimizer, and the learning rate of each step as a pure function. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from reallm.errors import ConfigError, did_you_mean
from reallm.options import option

SCHEDULES = ("cosine", "linear", "constant")
NONFINITE = ("stop", "skip")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning-rate schedule and gradient clipping.

    Raises:
        ConfigError: a value is not allowed; names the field, the value and what is allowed.
    """

    lr: float = option(2e-5, "peak learning rate, reached at the end of the warm-up")
    beta1: float = option(0.9, "AdamW: decay of the running mean of gradients")
    beta2: float = option(0.95, "AdamW: decay of the running mean of squared gradients")
    eps: float = option(1e-8, "AdamW: added to the denominator")
    weight_decay: float = option(0.0, "AdamW: decoupled weight decay; norms and biases are never decayed")
    schedule: Literal["cosine", "linear", "constant"] = option(
        "cosine", "how the learning rate falls after the warm-up"
    )
    warmup_steps: int | None = option(None, "steps of linear warm-up; instead of warmup_ratio")
    warmup_ratio: float = option(0.03, "warm-up as a share of all steps, if warmup_steps is not given")
    min_lr_ratio: float = option(0.0, "where the learning rate falls to, as a share of lr")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this global L2 norm; 0 turns clipping off")
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop",
        "when the loss or the gradients are NaN or infinite: save, stop and name the samples, or skip the step and "
        "count it; neither changes the parameters",
    )

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"optimizer.schedule={self.schedule!r} is not one of {', '.join(SCHEDULES)}"
                f"{did_you_mean(str(self.schedule), SCHEDULES)}"
            )
        if self.on_nonfinite not in NONFINITE:
            raise ConfigError(
                f"optimizer.on_nonfinite={self.on_nonfinite!r} is not one of {', '.join(NONFINITE)}"
                f"{did_you_mean(str(self.on_nonfinite), NONFINITE)}"
            )
        for name in ("lr", "eps"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "greater than 0")
        for name in ("beta1", "beta2"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        for name in ("weight_decay", "max_grad_norm"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("warmup_ratio", "min_lr_ratio"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "between 0 and 1")
        if self.warmup_steps is not None:
            _check("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0")


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


def check_trainable(dtype: str, key: str = "model.dtype") -> None:
    """Check that parameters of a dtype can be trained.

    Raises:
        ConfigError: parameters of this dtype cannot be trained; names the key.
    """
    if dtype == "float16":
        raise ConfigError(f"{key}=float16 cannot be trained, its gradients underflow; use bfloat16 or float32")


def lr_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of optimizer step `step`, from 1 to `total_steps`.

    It rises linearly to `lr` at the last step of the warm-up, then falls such that it would reach `lr * min_lr_ratio`
    one step after the last: no step is wasted on a learning rate of zero.
    With 6 steps, 2 of them warm-up, and schedule `linear`: `lr * [1/2, 1, 1, 3/4, 2/4, 1/4]`.
    """
    warmup = _warmup_steps(total_steps, config)
    if step <= warmup:
        return config.lr * step / warmup
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - 1 - warmup) / max(1, total_steps - warmup))
    falling = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * falling)


def _warmup_steps(total_steps: int, config: OptimizerConfig) -> int:
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.ceil(config.warmup_ratio * total_steps)


def _check(name: str, value: float, allowed: bool, what: str) -> None:
    if not allowed:
        raise ConfigError(f"optimizer.{name}={value!r} must be {what}")
