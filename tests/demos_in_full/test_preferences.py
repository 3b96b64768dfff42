"""`reallm demo --algorithm rw`, `dpo`, `grpo` and `ppo` in full length: models learn what the demos promise."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from reallm.demo.run import run_demo


def test_a_reward_model_tells_friendly_answers_from_grumpy_ones(tmp_path: Path) -> None:
    result = run_demo(tmp_path, algorithm="rw", console=Console(file=io.StringIO(), width=100))
    assert result.metrics["eval/accuracy"] >= 0.95


def test_dpo_makes_a_model_friendly(tmp_path: Path) -> None:
    printed = io.StringIO()
    result = run_demo(tmp_path, algorithm="dpo", console=Console(file=printed, width=100))
    before, after = friendly_shares(printed.getvalue(), "DPO")
    assert 35 <= before <= 65
    assert after >= 90
    assert result.metrics["eval/rewards/accuracies"] >= 0.95


@pytest.mark.parametrize(
    ("algorithm", "divergence", "highest"),
    [("grpo", "train/kl", 0.1), ("ppo", "actor_train/objective/kl", 4.0)],  # nats a token, and nats an answer
)
def test_rewards_make_a_model_friendly_that_stays_near_the_one_before(
    tmp_path: Path, algorithm: str, divergence: str, highest: float
) -> None:
    printed = io.StringIO()
    result = run_demo(tmp_path, algorithm=algorithm, console=Console(file=printed, width=100))
    before, after = friendly_shares(printed.getvalue(), algorithm.upper())
    assert 20 <= before <= 65
    assert after >= 90
    assert 0 < result.metrics[divergence] < highest


def friendly_shares(output: str, name: str) -> tuple[float, float]:
    """The percentages of friendly answers before and after an algorithm, as a demo prints them."""
    shares = re.search(rf"Friendly answers to 256 requests .*: ([\d.]+)% before {name}, ([\d.]+)% after", output)
    assert shares is not None
    before, after = map(float, shares.groups())
    return before, after
