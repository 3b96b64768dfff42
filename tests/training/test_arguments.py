"""A training engine given what is not a model, a configuration, a batch or an objective says what it wants."""

from __future__ import annotations

from typing import Any

import pytest

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ReallmError
from reallm.training.engine import TrainEngine
from tests.training.train_cases import BATCHES, Case

CONFIG: Any = OptimizerConfig()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("path", CONFIG, 10, 100), "model must be a ReaLModel, not text; ReaLModel.from_pretrained(path) loads one"),
        ((None, {"lr": 1}, 10, 100), "optimizer_config must be an OptimizerConfig, not a dict; write OptimizerConfig("),
        ((None, CONFIG, "10", 100), "total_steps='10' must be a whole number"),
        ((None, CONFIG, 0, 100), "total_steps=0 must be at least 1"),
        ((None, CONFIG, 10, 0.5), "max_tokens_per_microbatch=0.5 must be a whole number"),
    ],
)  # fmt: skip
def test_an_engine_of_other_things(args: tuple[Any, ...], said: str) -> None:
    model, *rest = args
    with pytest.raises(ReallmError) as caught:
        TrainEngine(model or Case(None).model(), *rest)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "objective", "said"),
    [
        ([BATCHES[0]], SFTInterface(), "a batch must be a NamedArray, not a list; write gather(samples)"),
        (None, SFTInterface(), "a batch must be a NamedArray, not None"),
        (BATCHES[0], SFTInterface, "objective must be an instance; write SFTInterface()"),
        (BATCHES[0], "sft", "objective must be an Objective such as SFTInterface(), not text"),
    ],
)  # fmt: skip
def test_a_step_on_other_things(batch: Any, objective: Any, said: str) -> None:
    engine = Case(None).engine()
    with pytest.raises(ReallmError) as caught:
        engine.train_batch(batch, objective)
    assert said in str(caught.value)


def test_an_evaluation_of_a_single_batch_and_the_state_of_nothing() -> None:
    engine = Case(None).engine()
    with pytest.raises(ReallmError, match="batches must be a list of batches, not a NamedArray; write"):
        engine.evaluate(BATCHES[0], SFTInterface())  # type: ignore[arg-type]
    with pytest.raises(ReallmError, match="state must be an EngineState, not a dict"):
        engine.load_state({})  # type: ignore[arg-type]
