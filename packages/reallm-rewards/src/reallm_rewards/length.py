"""The reward `length`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reallm.errors import DataError
from reallm_rewards.texts import for_each


def length(
    completion_ids: Sequence[Sequence[int]], wanted_length: int | Sequence[int | None], **columns: Any
) -> list[float | None]:
    """1 for a completion as long as wanted, falling to 0 for an empty one or one twice as long; None if none is wanted.

        max(0, 1 - |length - wanted_length| / wanted_length)

    Args:
        completion_ids: tokens of the completions.
        wanted_length: the length in tokens, or that of each completion; at least 1.
        columns: further columns, which are not used.

    Raises:
        DataError: a wanted length is less than 1.
    """
    rewards: list[float | None] = []
    wanted_lengths = for_each("wanted_length", wanted_length, len(completion_ids))
    for ids, wanted in zip(completion_ids, wanted_lengths, strict=True):
        if wanted is None:
            rewards.append(None)
            continue
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or wanted < 1:
            raise DataError(f"wanted_length: found {wanted!r}, wanted a number of tokens, at least 1")
        rewards.append(max(0.0, 1 - abs(len(ids) - wanted) / wanted))
    return rewards
