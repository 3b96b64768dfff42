"""Steps of GRPO on two ranks, generation in another layout than training: the numbers of one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.algorithms.grpo.steps import Steps
from tests.helpers.ranks import on_ranks

SETTINGS: dict[str, Any] = {"beta": 0.1, "num_minibatches": 2}
APART = {"actor_gen": "dp1@1", "rew_fn": "dp1@1", "ref_inf": "dp1@0", "actor_train": "dp1@0"}


def train(rank: int, layouts: Mapping[str, str], async_steps: int) -> list[dict[str, float]]:
    """Metrics of a few steps."""
    return Steps.of(layouts, async_steps=async_steps, **SETTINGS).train(1, 2 + async_steps, 2 + async_steps)


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
