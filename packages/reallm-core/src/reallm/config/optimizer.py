"""Configuration of the optimizer. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reallm.config.group import ConfigGroup
from reallm.errors import ConfigError
from reallm.field_types import check_fields
from reallm.options import option
from reallm.parallel.layout import Layout

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
    "sgd": {"momentum": 0.0, "nesterov": False},
    "adafactor": {"beta2_decay": -0.8, "clip_threshold": 1.0},
    "muon": {
        "momentum": 0.95,
        "nesterov": True,
        "adjust_lr_fn": "match_rms_adamw",
        "ns_steps": 5,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
    },
}
"""Optimizer -> its options with their defaults, besides the learning rate and weight decay, which all have."""
NEEDS_WHOLE_MATRICES = ("adafactor", "muon")
"""The optimizers whose update of an element depends on other elements of its matrix."""


@dataclass(frozen=True)
class OptimizerConfig(ConfigGroup, group="optimizer"):
    """The optimizer, its learning-rate schedule and gradient clipping.

    An option that is None has the default of the chosen optimizer, if it has this option: see `options`.

    Raises:
        ConfigError: a value is not allowed, or the chosen optimizer has no such option; names the field and the value.
    """

    name: Literal["adamw", "sgd", "adafactor", "muon"] = option(
        "adamw",
        "which optimizer. muon is for the matrices of the blocks and leaves embeddings, head, norms and biases to "
        "adamw. Several processes that split matrices (dp, tp) need adamw or sgd",
    )
    lr: float = option(
        2e-5,
        "peak learning rate, reached at the end of the warm-up; adafactor multiplies it by the root mean square of "
        "each parameter: 1e-3 is usual",
    )
    weight_decay: float = option(0.0, "weight decay, decoupled except in sgd; norms and biases are never decayed")
    beta1: float | None = option(None, "adamw, muon: decay of the running mean of gradients; null: 0.9")
    beta2: float | None = option(None, "adamw, muon: decay of the running mean of squared gradients; null: 0.95")
    eps: float | None = option(None, "adamw, muon: added to AdamW's denominator; null: 1e-8")
    momentum: float | None = option(None, "sgd, muon: decay of the sum or mean of gradients; null: 0 and 0.95")
    nesterov: bool | None = option(None, "sgd, muon: Nesterov momentum; null: false and true")
    beta2_decay: float | None = option(
        None, "adafactor: exponent of the step number that gives the weight of new squared gradients; null: -0.8"
    )
    clip_threshold: float | None = option(
        None, "adafactor: root mean square to which the update of a parameter is scaled down; null: 1"
    )
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = option(
        None,
        "muon: how lr depends on the shape of a matrix. match_rms_adamw makes updates as large as AdamW's, so that its "
        "lr fits; original is that of the first publication; null: match_rms_adamw",
    )
    ns_steps: int | None = option(None, "muon: Newton-Schulz iterations of the orthogonalization; null: 5")
    schedule: Literal["cosine", "linear", "constant"] = option(
        "cosine", "how the learning rate falls after the warm-up"
    )
    warmup_steps: int | None = option(None, "steps of linear warm-up, from 0; instead of warmup_ratio")
    warmup_ratio: float = option(0.03, "warm-up as a share of all steps, if warmup_steps is not given")
    min_lr_ratio: float = option(0.0, "where the learning rate falls to, as a share of lr")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this global L2 norm; 0 turns clipping off")
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop",
        "when the loss or the gradients are NaN or infinite: save, stop and name the samples, or skip the step and "
        "count it; neither changes the parameters",
    )

    def __post_init__(self) -> None:
        check_fields(self, "optimizer")
        defaults = OPTIONS[self.name]
        for name in _ALL_OPTIONS:
            value = getattr(self, name)
            if name not in defaults and value is not None:
                owners = " and ".join(each for each, options in OPTIONS.items() if name in options)
                raise ConfigError(
                    f"optimizer.{name}={value!r} is an option of {owners}, not of {self.name}; leave it out, or choose "
                    f"another optimizer.name. {self.name} has {', '.join(defaults)} and weight_decay"
                )
        for name in ("lr", "eps"):
            self._check(name, lambda value: 0 < value < math.inf, "greater than 0")
        for name in ("beta1", "beta2", "momentum"):
            self._check(name, lambda value: 0 <= value < 1, "at least 0 and less than 1")
        for name in ("weight_decay", "max_grad_norm"):
            self._check(name, lambda value: 0 <= value < math.inf, "at least 0")
        for name in ("warmup_ratio", "min_lr_ratio"):
            self._check(name, lambda value: 0 <= value <= 1, "between 0 and 1")
        self._check("warmup_steps", lambda value: value >= 0, "at least 0")
        self._check("beta2_decay", lambda value: -math.inf < value <= 0, "at most 0")
        self._check("clip_threshold", lambda value: 1 <= value < math.inf, "at least 1")
        self._check("ns_steps", lambda value: 1 <= value < 100, "between 1 and 99")
        if self.options.get("nesterov") and not self.options["momentum"]:
            raise ConfigError("optimizer.nesterov=true needs optimizer.momentum above 0")

    @property
    def options(self) -> dict[str, Any]:
        """The values in force of the options that the chosen optimizer has, besides `lr` and `weight_decay`."""
        given = {name: getattr(self, name) for name in OPTIONS[self.name]}
        return {name: default if given[name] is None else given[name] for name, default in OPTIONS[self.name].items()}

    def _check(self, name: str, is_allowed: Any, what: str) -> None:
        value = getattr(self, name)
        if value is not None and not is_allowed(value):
            raise ConfigError(f"optimizer.{name}={value!r} must be {what}")


_ALL_OPTIONS = tuple(dict.fromkeys(name for options in OPTIONS.values() for name in options))


def check_trainable(dtype: str, key: str = "model.dtype") -> None:
    """Check that parameters of a dtype can be trained.

    Raises:
        ConfigError: parameters of this dtype cannot be trained; names the key.
    """
    if dtype == "float16":
        raise ConfigError(f"{key}=float16 cannot be trained, its gradients underflow; use bfloat16 or float32")


def check_unsharded(config: OptimizerConfig, layout: Layout, key: str = "") -> None:
    """Check that a layout leaves matrices whole if the optimizer needs them whole.

    Args:
        config: the optimizer.
        layout: the layout.
        key: the key and value of the layout, for messages; empty if it is that of `parallel.*`.

    Raises:
        ConfigError: the layout splits matrices, by tensor parallelism or FSDP.
    """
    sizes = {"dp": layout.dp if layout.fsdp else 1, "tp": layout.tp}
    splitting = " and ".join(f"parallel.{name}={size}" for name, size in sizes.items() if size > 1)
    if splitting and config.name in NEEDS_WHOLE_MATRICES:
        raise ConfigError(
            f"optimizer.name={config.name} computes with whole matrices, which {key or splitting} would split; use "
            "adamw or sgd, or only pipeline stages (parallel.pp)"
        )
