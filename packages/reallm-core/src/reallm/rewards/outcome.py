"""What comes of calling a reward function."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal

from reallm.errors import counted, kind_of

Failure = Literal["error", "timeout"]
"""Why an answer has no reward: the function raised or its process ended, or it took too long."""


@dataclass(frozen=True)
class Outcome:
    """The rewards of some answers by one function."""

    rewards: list[float | None]
    """The reward of each answer; None: not applicable, or failed."""
    failures: list[Failure | None]
    """Why an answer has no reward; None if the function returned."""
    trace: str = ""
    """The first trace, or what happened instead."""

    @classmethod
    def failed(cls, failure: Failure, trace: str) -> Outcome:
        """The outcome for an answer without a reward."""
        return cls([None], [failure], trace)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.rewards + other.rewards, self.failures + other.failures, self.trace or other.trace)


class InvalidRewardsError(Exception):
    """What a function returned are no rewards; says why, and `index` is the answer, if it is that of one."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


def checked_rewards(found: Any, n: int) -> list[float | None]:
    """What a function returned for `n` answers, as floats.

    Raises:
        InvalidRewardsError: it is no list of so many finite numbers or None.
    """
    if hasattr(found, "tolist"):  # of numpy or torch
        found = found.tolist()
    if not isinstance(found, list | tuple):
        raise InvalidRewardsError(f"returned {kind_of(found)}, not a list with a number or None for each completion")
    if len(found) != n:
        raise InvalidRewardsError(f"returned {counted(len(found), 'reward')} for {counted(n, 'completion')}")
    return [_checked(one, index) for index, one in enumerate(found)]


def _checked(reward: Any, index: int) -> float | None:
    if hasattr(reward, "item"):
        reward = reward.item()
    if reward is None:
        return None
    if not isinstance(reward, numbers.Real):
        shown = f"{reward!r}" if isinstance(reward, str) else kind_of(reward)
        raise InvalidRewardsError(f"returned {shown} as a reward, not a number or None", index)
    if not math.isfinite(reward):
        raise InvalidRewardsError(f"returned {float(reward)} as a reward; None means that it does not apply", index)
    return float(reward)
