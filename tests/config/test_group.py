"""Wrong arguments of configurations in Python are answered with the right ones."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from reallm import (
    ConfigError,
    ModelArgs,
    OptimizerConfig,
    ParallelArgs,
    SFTConfig,
    TrainingConfig,
)


@pytest.mark.parametrize(
    ("config_class", "argument", "said"),
    [
        (OptimizerConfig, "learning_rate", "; did you mean 'lr'?"),
        (OptimizerConfig, "weight_dekay", "; did you mean 'weight_decay'?"),
        (OptimizerConfig, "run_name", "; see help(OptimizerConfig)"),
        (ModelArgs, "torch_dtype", "; did you mean 'dtype'?"),
        (ParallelArgs, "tp_size", "; did you mean 'tp'?"),
        (SFTConfig, "num_train_epochs", "; did you mean 'epochs'?"),
        (SFTConfig, "learning_rate", "; write optimizer=OptimizerConfig(lr=...)"),
        (SFTConfig, "optim", "; write optimizer=OptimizerConfig(name=...)"),
        (SFTConfig, "warmup_ratio", "; write optimizer=OptimizerConfig(warmup_ratio=...)"),
        (SFTConfig, "base_model", "; write model=ModelArgs(path=...)"),
        (SFTConfig, "max_seq_length", "; it is 'max_seqlen' of the dataset"),
        (SFTConfig, "trust_remote_code", ": code from checkpoints is never run; families that are plugins read them"),
    ],
)
def test_an_unknown_argument(config_class: type, argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_class(**{argument: 1})
    assert str(caught.value) == f"{config_class.__name__} has no field '{argument}'{said}"


def test_an_algorithm_of_a_plugin() -> None:
    @dataclasses.dataclass(frozen=True)
    class Distillation(TrainingConfig):
        teacher: ModelArgs = dataclasses.field(default_factory=ModelArgs)

    with pytest.raises(ConfigError, match=r"Distillation has no field 'teachr'; did you mean 'teacher'\?"):
        Distillation(teachr=1)


@pytest.mark.parametrize("make", [copy.deepcopy, dataclasses.replace, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies(make: Any) -> None:
    config = OptimizerConfig(lr=1e-4, warmup_steps=3)
    assert make(config) == config
