"""Steps of GRPO on two ranks, generation in another layout than training: the numbers of one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.context import CallContext
from tests.algorithms.grpo.steps import Steps
from tests.helpers.ranks import on_ranks

SETTINGS: dict[str, Any] = {"beta": 0.1, "num_minibatches": 2}
APART = {"actor_gen": "dp1@1", "rew_fn": "dp1@1", "ref_inf": "dp1@0", "actor_train": "dp1@0"}


def train(rank: int, layouts: Mapping[str, str], async_steps: int) -> list[dict[str, float]]:
    """Metrics of a few steps."""
    return Steps.of(layouts, async_steps=async_steps, **SETTINGS).train(1, 2 + async_steps, 2 + async_steps)


def generate_until_trained(rank: int, folder: Path) -> list[int]:
    """Steps at the end of whose sampling the step before had begun to train; it is waited for."""
    steps = Steps.of({**APART, "rew_fn": "dp1@0"}, async_steps=1, **SETTINGS)
    interface, side_by_side = steps.interfaces["actor"], []

    def generate(model: Any, batch: Any, context: CallContext) -> Any:
        found = type(interface).generate(interface, model, batch, context)
        if context.step > 1:
            deadline = time.monotonic() + 240
            while not (begun := (folder / str(context.step - 1)).exists()) and time.monotonic() < deadline:
                time.sleep(0.01)
            side_by_side.extend([context.step] * begun)
        return found

    def train_step(engine: Any, batch: Any, context: CallContext) -> Any:
        (folder / str(context.step)).touch()
        return type(interface).train_step(interface, engine, batch, context)

    interface.generate, interface.train_step = generate, train_step
    steps.train(1, 3, 3)
    return side_by_side


def test_the_next_answers_are_sampled_while_others_are_trained_on(tmp_path: Path) -> None:
    assert on_ranks(2, generate_until_trained, tmp_path) == [[], [2, 3]]


@pytest.mark.parametrize(
    ("layouts", "async_steps"),
    [
        ({"actor_gen": "dp2", "rew_fn": "dp1@1", "ref_inf": "dp1@1", "actor_train": "tp2"}, 0),
        (APART, 0),
        (APART, 1),
    ],
    ids=["everywhere", "apart", "ahead"],
)
def test_metrics_are_those_of_one_process(layouts: dict[str, str], async_steps: int) -> None:
    alone = train(0, {}, async_steps)
    assert alone[0]["train/reward_std"] > 0
    for found in on_ranks(2, train, layouts, async_steps):
        for step, expected in zip(found, alone, strict=True):
            assert step == pytest.approx(expected, rel=1e-6, abs=1e-7)  # log-probabilities are kept in float32
