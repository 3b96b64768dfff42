"""Settings of a run, which the kits give to loggers and callbacks."""

from __future__ import annotations

from typing import Any


def run_config() -> dict[str, Any]:
    """New settings, the same each time, with a value of every type that settings can have."""
    return {
        "name": "first-try",
        "model": {"path": "models/tiny", "compile": False},
        "optimizer": {"lr": 2e-05, "warmup_steps": None},
        "loggers": ["jsonl", "tensorboard"],
    }
