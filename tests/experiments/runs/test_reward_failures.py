"""What is said of reward functions that failed, from the metrics of a run."""

from __future__ import annotations

import pytest

from reallm.experiments.runs.metrics import Curve
from reallm.experiments.runs.reward_failures import reward_failures


def curves(errors: list[int], timeouts: list[int], ratios: list[float], *, mean: bool) -> dict[str, Curve]:
    """The metrics of the reward `right`, in a run of PPO."""
    values = {"errors": errors, "timeouts": timeouts, "failed_ratio": ratios}
    found = {f"rew_fn/rewards/right/{name}": list(enumerate(map(float, each), 1)) for name, each in values.items()}
    return {
        **found,
        "eval/rewards/right/mean": [(0, 1.0)],
        **({"actor_train/rewards/right/mean": [(1, 0.0)]} if mean else {}),
    }


@pytest.mark.parametrize(
    ("errors", "timeouts", "ratios", "mean", "expected"),
    [
        ([0, 0], [0, 0], [0, 0], True, []),
        ([8, 8], [0, 0], [1, 1], False, ["failed for all 16 answers: nothing was learned from it"]),
        ([8, 1000], [0, 500], [1, 1], True, ["failed for all 1,508 answers, 500 of them by a time-out: nothing was "
                                             "learned from it"]),
        ([0, 0, 0], [0, 3, 0], [0, 0.5, 0], True, ["failed for 3 answers, in 1 of 3 steps"]),
        ([1], [0], [0.5], True, ["failed for 1 answer, in 1 of 1 step"]),
        ([0, 0], [0, 0], [0, 0], False, ["applied to none of the answers: nothing was learned from it"]),
    ],
)  # fmt: skip
def test_lines(errors: list[int], timeouts: list[int], ratios: list[float], mean: bool, expected: list[str]) -> None:
    found = reward_failures(curves(errors, timeouts, ratios, mean=mean))
    assert found == [f"the reward 'right' {line}" for line in expected]
