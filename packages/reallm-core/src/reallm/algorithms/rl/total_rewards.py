"""The rewards of answers: those of each function and of a reward model, and their weighted sum.

Shapes: S answers, F rewards of each: those of the functions in their order, and then that of the reward model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reallm.algorithms.rl.config import RewardedConfig
from reallm.data.namedarray import NamedArray

REWARD_MODEL = "reward_model"
"""Name of the reward model among the rewards."""
REWARD_METRICS = ("reward", "reward_std", "frac_reward_zero_std", "rewards/*/mean", "rewards/*/std")
"""Names that `reward_metrics` may give."""
COMPLETION_METRICS = (
    "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
    "completions/mean_terminated_length",
)  # fmt: skip
"""Names that `completion_metrics` may give."""


class Rewards(NamedTuple):
    """The rewards of S answers."""

    parts: Tensor
    """[S, F] float64; 0 where a reward is not given."""
    given: Tensor
    """[S, F] bool: whether a reward applies to an answer, and its function neither failed nor took too long."""
    weights: Tensor
    """[F] float64."""

    @property
    def totals(self) -> Tensor:
        """[S] float64: the weighted sum of the rewards that are given; 0 for an answer without any."""
        return (self.parts * self.weights).sum(1)

    @property
    def any_given(self) -> Tensor:
        """[S] bool: whether an answer has a reward at all. One that has none takes no part in training."""
        return self.given.any(1)


def rewards_of(batch: NamedArray, config: RewardedConfig, prefix: str = "") -> Rewards:
    """The rewards in a batch.

    Args:
        batch: `reward_parts` and `reward_given`, one number for each function and answer; `scores` [S] of the reward
            model. It has the keys of what the configuration names.
        config: the configuration of the run.
        prefix: beginning of these keys.
    """
    parts, given = [], []
    if n_functions := len(config.reward.functions):
        parts.append(batch[f"{prefix}reward_parts"].double().view(-1, n_functions))
        given.append(batch[f"{prefix}reward_given"].view(-1, n_functions))
    if config.reward.path:
        scores = batch[f"{prefix}scores"].double().view(-1, 1)
        parts.append(scores)
        given.append(torch.ones_like(scores, dtype=torch.bool))
    all_given = torch.cat(given, 1)
    n = all_given.shape[1]
    weights = torch.tensor(config.reward_weights or [1.0] * n, dtype=torch.float64, device=all_given.device)
    return Rewards(torch.where(all_given, torch.cat(parts, 1), 0.0), all_given, weights)


def reward_names(config: RewardedConfig) -> list[str]:
    """Names [F] of the rewards in metrics: `accuracy` of `package.module:accuracy`; equal ones are numbered."""
    names = [reference.rpartition(":")[2] for reference in config.reward.functions]
    names += [REWARD_MODEL] if config.reward.path else []
    return [name if names.count(name) == 1 else f"{name}_{1 + names[:i].count(name)}" for i, name in enumerate(names)]


def overlong_penalties(lengths: Tensor, max_new_tokens: int, buffer: int, penalty: float) -> Tensor:
    """What is subtracted from the rewards of long answers [S] float64: nothing up to `max_new_tokens - buffer` tokens,
    then linearly more, up to `penalty`; DAPO, arXiv 2503.14476 Eq. 13.

    Args:
        lengths: tokens of each answer, [S].
        max_new_tokens: longest answer.
        buffer: tokens over which the penalty rises; 0: none.
        penalty: its largest value.
    """
    if not buffer:
        return torch.zeros_like(lengths, dtype=torch.float64)
    return penalty * ((lengths - (max_new_tokens - buffer)).double() / buffer).clamp(0, 1)


def zero_std_groups(totals: Tensor, given: Tensor, groups: Tensor) -> Tensor:
    """Whether all rewards of an answer's group are equal, or none is given, [S] bool.

    Args:
        totals: rewards [S] float64.
        given: whether an answer has one, [S] bool.
        groups: number of each answer's group, [S] int64.
    """
    numbers = torch.unique(groups, return_inverse=True)[1]
    n = int(numbers.max()) + 1 if len(numbers) else 0
    lowest = torch.full((n,), torch.inf, dtype=torch.float64, device=totals.device)
    highest = -lowest
    lowest.scatter_reduce_(0, numbers[given], totals[given], "amin")
    highest.scatter_reduce_(0, numbers[given], totals[given], "amax")
    return (lowest >= highest)[numbers]


def reward_metrics(rewards: Rewards, totals: Tensor, groups: Tensor, names: list[str]) -> dict[str, float]:
    """Metrics of the rewards of a step under TRL's names: `reward`, `reward_std`, `frac_reward_zero_std`, and
    `rewards/<name>/mean` and `.../std` of each; those of nothing are left out.

    Args:
        rewards: the rewards.
        totals: the rewards that are trained with, [S] float64.
        groups: number of each answer's group, [S] int64.
        names: names [F] of the rewards.
    """
    flat = zero_std_groups(totals, rewards.any_given, groups)
    shares = torch.stack([flat[groups == group][0] for group in torch.unique(groups)]).double()
    metrics = {"frac_reward_zero_std": float(shares.mean())}
    columns = {"reward": (totals, rewards.any_given)}
    columns |= {f"rewards/{name}": (rewards.parts[:, i], rewards.given[:, i]) for i, name in enumerate(names)}
    for name, (values, given) in columns.items():
        mean, std = ("reward", "reward_std") if name == "reward" else (f"{name}/mean", f"{name}/std")
        found = values[given]
        if len(found):
            metrics[mean] = float(found.mean())
            metrics[std] = float(found.std()) if len(found) > 1 else 0.0
    return metrics


def completion_metrics(lengths: Tensor, truncated: Tensor) -> dict[str, float]:
    """Metrics of the answers of a step under TRL's names: `completions/mean_length`, `completions/clipped_ratio`, ...

    Args:
        lengths: tokens of each answer, [S].
        truncated: whether it ended because it was as long as allowed, [S] bool.
    """
    metrics = {
        "completions/mean_length": float(lengths.double().mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(truncated.double().mean()),
    }
    ended = lengths[~truncated]
    return {**metrics, "completions/mean_terminated_length": float(ended.double().mean())} if len(ended) else metrics
