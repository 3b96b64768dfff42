"""Advantages of answers: their rewards, compared with those of other answers. Computed in float64.

An answer that has no reward (`given` is False) has the advantage 0, and takes no part in means and deviations. Where
all rewards that are compared are equal, advantages are exactly 0, whatever rounding would make of them.

Shapes: S answers, F rewards of each.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reallm.algorithms.rl.total_rewards import zero_std_groups

EPS = 1e-4
"""What is added to a standard deviation that is divided by, as in TRL."""


def group_advantages(
    rewards: Tensor,
    groups: Tensor,
    *,
    baseline: Literal["mean", "others"] = "mean",
    scale: Literal["group", "batch", "none"] = "group",
    given: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Advantages [S] float64 of answers in groups.

    `r - mean` over a standard deviation is that of GRPO (arXiv 2402.03300), without it that of Dr. GRPO (2503.20783);
    the mean of the other answers as the baseline is that of RLOO (2402.14740).

    Args:
        rewards: [S].
        groups: [S] int64, the group of each answer, in any order.
        baseline: the mean of the group, or of the others in it.
        scale: which standard deviation to divide by.
        given: [S] bool, whether an answer has a reward; None: all have.
        eps: added to the standard deviation.
    """
    rewards, given = rewards.double(), _all_if_none(given, rewards)
    group = _statistics(rewards, groups, given)
    advantages = rewards - group.means
    if baseline == "others":  # r - (sum - r) / (n - 1)
        advantages = advantages * group.counts / (group.counts - 1).clamp(min=1)
    if scale == "group":
        advantages = advantages / (group.stds + eps)
    elif scale == "batch":
        advantages = advantages / (_std(rewards[given]) + eps)
    return torch.where(given & ~zero_std_groups(rewards, given, groups), advantages, 0.0)


def batch_advantages(rewards: Tensor, *, scale: bool, given: Tensor | None = None, eps: float = EPS) -> Tensor:
    """Advantages [S] float64 relative to the mean of the whole step, as in REINFORCE++ (arXiv 2501.03262).

    Args:
        rewards: [S].
        scale: whether to divide by the standard deviation of the step.
        given: [S] bool, whether an answer has a reward; None: all have.
        eps: added to the standard deviation.
    """
    rewards, given = rewards.double(), _all_if_none(given, rewards)
    found = rewards[given]
    if not len(found) or bool((found == found[0]).all()):
        return torch.zeros_like(rewards)
    advantages = rewards - found.mean()
    return torch.where(given, advantages / (_std(found) + eps) if scale else advantages, 0.0)


def greedy_advantages(
    rewards: Tensor,
    baseline: Tensor,
    groups: Tensor,
    *,
    scale: Literal["group", "batch", "none"] = "none",
    given: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Advantages [S] float64 relative to the reward of the most likely answer to the prompt: ReMax (arXiv 2310.10505).

    Args:
        rewards: [S].
        baseline: [S], the reward of the most likely answer to each answer's prompt.
        groups: [S] int64, the group of each answer.
        scale: which standard deviation of `rewards` to divide by.
        given: [S] bool, whether an answer has a reward and a baseline; None: all have.
        eps: added to the standard deviation.
    """
    rewards, given = rewards.double(), _all_if_none(given, rewards)
    advantages = rewards - baseline.double()
    if scale == "group":
        advantages = advantages / (_statistics(rewards, groups, given).stds + eps)
    elif scale == "batch":
        advantages = advantages / (_std(rewards[given]) + eps)
    return torch.where(given, advantages, 0.0)


def normalized_then_summed_advantages(
    parts: Tensor, groups: Tensor, weights: Tensor, *, given: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """Advantages [S] float64 of several rewards: each normalised in its group, then summed, then whitened over the step
    (GDPO, arXiv 2601.05242).

    Args:
        parts: [S, F] rewards.
        groups: [S] int64, the group of each answer.
        weights: [F] of the rewards.
        given: [S, F] bool, whether an answer has a reward; None: all have.
        eps: added to standard deviations.
    """
    given = _all_if_none(given, parts)
    summed = torch.zeros(len(parts), dtype=torch.float64, device=parts.device)
    for part, has, weight in zip(parts.unbind(1), given.unbind(1), weights.double(), strict=True):
        summed += weight * group_advantages(part, groups, given=has, eps=eps)
    return batch_advantages(summed, scale=True, given=given.any(dim=1), eps=eps)


class _Statistics(NamedTuple):
    """Of the group of each answer: [S] float64."""

    counts: Tensor
    means: Tensor
    stds: Tensor
    """With n - 1 in the denominator; 0 for a group of one."""


def _statistics(rewards: Tensor, groups: Tensor, given: Tensor) -> _Statistics:
    numbers = torch.unique(groups, return_inverse=True)[1]
    has = given.double()

    def sums(values: Tensor) -> Tensor:
        of_groups = torch.zeros(len(numbers), dtype=torch.float64, device=values.device)
        return of_groups.index_add(0, numbers, torch.where(given, values, 0.0))[numbers]

    counts = sums(has)
    means = sums(rewards) / counts.clamp(min=1)
    return _Statistics(counts, means, (sums((rewards - means) ** 2) / (counts - 1).clamp(min=1)).sqrt())


def _std(values: Tensor) -> Tensor:
    return values.std() if len(values) > 1 else torch.zeros((), dtype=values.dtype, device=values.device)


def _all_if_none(given: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if given is None else given
