"""The reward `reasoning_gym`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reallm_rewards.reasoning_gym.tasks import make_task
from reallm_rewards.texts import answer_text, completion_text

_WITH_TUPLES = ("arc_agi", "rearc")
"""Tasks whose scores compare a board with tuples, which JSON makes lists."""


def reasoning_gym(
    completions: Sequence[Any], reasoning_gym: Sequence[Mapping[str, Any] | None], **columns: Any
) -> list[float | None]:
    """The task's own score, from 0 to 1, of what a completion has in `<answer>...</answer>`, or else of all of it.

    An answer that the task cannot read, for which its score raises, gets 0.

    Args:
        completions: texts or messages.
        reasoning_gym: the column of the dataset `reasoning_gym`; None for rows of other datasets, which get None.
        columns: further columns, which are not used.

    Raises:
        ConfigError: the library reasoning-gym is not installed.
    """
    return [
        None if one is None else _score(answer_text(completion_text(completion)).strip(), one)
        for completion, one in zip(completions, reasoning_gym, strict=True)
    ]


def _score(answer: str, about: Mapping[str, Any]) -> float:
    entry = json.loads(about["entry"])
    if about["task"] in _WITH_TUPLES:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    score = _scorer(about["task"], about["parameters"])
    try:
        return float(score(answer, entry))
    except Exception:
        return 0.0


@functools.cache
def _scorer(task: str, parameters: str) -> Callable[[str, dict[str, Any]], float]:
    scorer: Callable[[str, dict[str, Any]], float] = make_task(task, json.loads(parameters)).score_answer
    return scorer
