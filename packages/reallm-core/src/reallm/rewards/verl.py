"""Adapter for reward functions of verl: `compute_score(data_source, solution_str, ground_truth, extra_info)`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def adapted(compute_score: Callable[..., Any]) -> Callable[..., list[Any]]:
    """A function of TRL's signature that calls one of verl's for each completion.

    Rows have the columns `data_source`, `extra_info`, and `ground_truth` or verl's `reward_model`, a mapping with
    `ground_truth`; missing ones are None. A mapping that it returns counts by its `score`.
    """

    @functools.wraps(compute_score, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    def rewards(completions: Sequence[Any], **columns: Any) -> list[Any]:
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(completions))]
        return [_score(compute_score, text_of(one), row) for one, row in zip(completions, rows, strict=True)]

    del rewards.__wrapped__  # its signature is not that of verl's function
    return rewards


def text_of(completion: Any) -> str:
    """The text of a completion, which is text, or messages of which the last counts."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _score(compute_score: Callable[..., Any], text: str, row: Mapping[str, Any]) -> Any:
    truth = row.get("ground_truth")
    if truth is None:
        truth = (row.get("reward_model") or {}).get("ground_truth")
    score = compute_score(
        data_source=row.get("data_source"), solution_str=text, ground_truth=truth, extra_info=row.get("extra_info")
    )
    return score["score"] if isinstance(score, Mapping) else score
