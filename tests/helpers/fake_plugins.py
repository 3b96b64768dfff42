"""Fake plugins for tests of the core alone, which replace the installed ones."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from reallm import builtin
from reallm.errors import ConfigError, UnknownNameError
from reallm.options import REQUIRED, option
from reallm.plugins import registry
from reallm.specs import Algorithm, DatasetSpec


@dataclasses.dataclass
class RowsConfig:
    """The configuration of a fake default dataset."""

    train_path: str = option(REQUIRED, "rows to train on")
    valid_path: str | None = option(None, "rows to evaluate on")
    max_seqlen: int = option(1024, "longest sequence, in tokens")
    overlong: Literal["truncate", "drop"] = option("truncate", "what to do with a longer one")
    train_bs_n_seqs: int = option(32, "batch size: sequences in one optimizer step")
    valid_bs_n_seqs: int = option(32, "sequences evaluated at once")

    def __post_init__(self) -> None:
        if self.max_seqlen < 2:
            raise ConfigError(f"max_seqlen={self.max_seqlen} must be at least 2")

    def check(self) -> None:
        """Check files before a model is loaded, as a dataset may."""
        if not self.train_path.endswith(".jsonl"):
            raise ConfigError(f"train_path: {self.train_path}: unknown extension")


@dataclasses.dataclass(frozen=True)
class MyConfig:
    """The configuration of a fake third-party dataset: frozen, and with no field in common with the default one."""

    my_arg: int = option(REQUIRED, "how many")
    mode: str = option("fast", "which way")
    extra: dict[str, int] = option({}, "more of it")

    def __post_init__(self) -> None:
        if self.my_arg > 100:
            raise ValueError("my_arg is too much")


OFFERS: dict[str, dict[str, Any]] = {
    "dataset": {
        "prompt_answer": DatasetSpec("nowhere:Rows", RowsConfig),
        "my-dataset": DatasetSpec("nowhere:Mine", MyConfig),
    },
    "algorithm": {
        **builtin.reallm_algorithms(),
        "hidden": Algorithm("reallm.algorithms.sft.config:SFTConfig", (), {}, "promised by no entry point"),
    },
    "logger": dict(builtin.reallm_loggers()),
    "family": {},
}
"""Kind -> name -> what a plugin offers."""

DECLARED = {"dataset": ["my-dataset", "prompt_answer"], "algorithm": ["sft"], "logger": ["jsonl", "tensorboard"]}


def install(monkeypatch: pytest.MonkeyPatch, *, without: str = "") -> None:
    """Make the registry offer `OFFERS` except the name `without`."""

    def get(kind: str, name: str) -> Any:
        if name not in OFFERS[kind] or name == without:
            raise UnknownNameError(f"no {kind} '{name}' is installed; pip install the-package")
        return OFFERS[kind][name]

    monkeypatch.setattr(registry, "get", get)
    monkeypatch.setattr(registry, "offers", lambda kind: OFFERS[kind])
    monkeypatch.setattr(registry, "names", lambda kind: sorted(OFFERS[kind]))
    monkeypatch.setattr(registry, "declared", lambda kind: DECLARED.get(kind, []))
