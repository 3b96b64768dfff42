"""Rows to try the reward `reasoning_gym` with."""

from __future__ import annotations

import json
from typing import Any

from reallm_rewards.reasoning_gym.tasks import make_task


def rows() -> list[dict[str, Any]]:
    """Questions of a task, each with its right answer and with a wrong one.

    Raises:
        ConfigError: the library reasoning-gym is not installed.
    """
    task, found = "basic_arithmetic", []
    for entry in make_task(task, {}, size=3):
        column = {"task": task, "parameters": "{}", "entry": json.dumps(entry)}
        found += [
            {"prompt": entry["question"], "completion": f"<answer>{text}</answer>", "reasoning_gym": column}
            for text in (entry["answer"], "no number")
        ]
    return found
