"""PPO and GRPO under many random plans on four ranks: the numbers of one process, and no plan hangs."""

from __future__ import annotations

import pytest

from tests.algorithms.rl_plans import Plan, check_metrics, train_all
from tests.helpers.ranks import on_ranks

SEEDS = range(100, 125)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_metrics_are_those_of_one_process(algorithm: str) -> None:
    plans = [Plan.draw(algorithm, seed) for seed in SEEDS]
    by_rank = on_ranks(4, train_all, plans, timeout_s=1200.0)
    check_metrics([(plan, [outcomes[number] for outcomes in by_rank]) for number, plan in enumerate(plans)])
