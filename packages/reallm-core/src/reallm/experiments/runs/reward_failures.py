"""What the metrics of a run say of reward functions that failed, or that applied to no answer."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

from reallm.errors import counted
from reallm.experiments.runs.metrics import Curve, is_evaluation


def reward_failures(curves: Mapping[str, Curve]) -> list[str]:
    """A line for each reward function that failed for answers of the run, or that gave no answer a reward.

    Args:
        curves: the metrics of the run, as `read_curves` gives them.
    """
    trained = [name for name in curves if not is_evaluation(name)]
    found = []
    for name in trained:
        if not fnmatch(name, "*/rewards/*/failed_ratio"):
            continue
        function = name.removesuffix("/failed_ratio")
        reward = function.rpartition("/")[2]
        ratios = [ratio for _, ratio in curves[name]]
        n_errors, n_timeouts = (_total(curves.get(f"{function}/{kind}", [])) for kind in ("errors", "timeouts"))
        n_failed = n_errors + n_timeouts
        timeouts = f", {n_timeouts:,} of them by a time-out" if n_errors and n_timeouts else ""
        if n_failed and min(ratios) == 1:
            found.append(
                f"the reward '{reward}' failed for all {n_failed:,} answers{timeouts}: nothing was learned from it"
            )
        elif n_failed:
            n_steps = sum(ratio > 0 for ratio in ratios)
            found.append(
                f"the reward '{reward}' failed for {counted(n_failed, 'answer')}{timeouts}, in {n_steps:,} of "
                f"{counted(len(ratios), 'step')}"
            )
        elif not any(other.endswith(f"/rewards/{reward}/mean") for other in trained):
            found.append(f"the reward '{reward}' applied to none of the answers: nothing was learned from it")
    return found


def _total(curve: Curve) -> int:
    return round(sum(value for _, value in curve))
