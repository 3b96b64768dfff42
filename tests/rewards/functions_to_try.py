"""Reward functions for the tests of the pool. A completion `bad` is what they fail for."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def matches(completions: Sequence[str], answer: Sequence[str]) -> list[float | None]:
    return [None if not text else float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]


def names(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(len(columns))] * len(completions)


def chance(completions: Sequence[str]) -> list[float]:
    return [random.random() for _ in completions]


async def later(completions: Sequence[str]) -> list[int]:
    return [2] * len(completions)


def raises(completions: Sequence[str]) -> list[float]:
    sys.stdout.write("what a function prints is no answer\n")
    return [1.0 if text != "bad" else 1 / 0 for text in completions]


def always_raises(completions: Sequence[str]) -> list[float]:
    raise ValueError("never")


def meets(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """Gives each answer alone 1, once two of these calls have found each other in the folder `answer`."""
    (one,), (folder,) = completions, answer
    Path(folder, one).touch()
    while len(list(Path(folder).iterdir())) < 2:
        time.sleep(0.01)
    return [1.0]


def hangs(completions: Sequence[str]) -> list[float]:
    while "bad" in completions:
        pass
    return [1.0] * len(completions)


def dies(completions: Sequence[str]) -> list[float]:
    if "bad" in completions:
        os._exit(3)
    return [1.0] * len(completions)


def nan(completions: Sequence[str]) -> list[float]:
    return [1.0] * (len(completions) - 1) + [float("nan")]


def too_few(completions: Sequence[str]) -> list[float]:
    return [1.0]


def torch_is_imported(completions: Sequence[str]) -> list[bool]:
    return ["torch" in sys.modules] * len(completions)


def says_yes(prompts: Sequence[list[dict[str, str]]], completions: Sequence[list[dict[str, str]]]) -> list[float]:
    assert all(prompt[-1] == {"role": "user", "content": "?"} for prompt in prompts)
    return [float(messages == [{"role": "assistant", "content": "yes"}]) for messages in completions]


def compute_score(
    data_source: str | None, solution_str: str, ground_truth: str, extra_info: Any = None
) -> dict[str, float]:
    return {"score": float(solution_str == ground_truth), "other": 0.0}
