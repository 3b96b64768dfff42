"""The work of the benchmark of reinforcement learning: prompts, where answers end, and their reward."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOWELS = frozenset("aeiou")
STOP_WORD = " of"
"""What ends answers of SmolLM2, besides its end-of-sequence token: one token, frequent enough for unequal lengths."""


@dataclass(frozen=True)
class RLHFJob:
    """What every side is given; all compute in float32 on a CPU."""

    folder: Path
    """The language model to start from. Its `generation_config.json` says that answers end at `stop_id` too."""
    reward_folder: Path
    """The same with a scalar head: reward model and critic of PPO."""
    prompts: tuple[str, ...]
    group_size: int
    max_new_tokens: int
    stop_id: int
    ppo_epochs: int
    scratch: Path
    ppo_trl: Path | None = None
    """Folder with a TRL that has a `PPOTrainer`; None: the installed one."""


def share_of_vowels(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The reward: the share of an answer's characters that are vowels. Cheap, and the same function on both sides."""
    return [sum(char in VOWELS for char in text) / max(1, len(text)) for text in completions]


def with_stop_token(source: Path, folder: Path, stop_id: int) -> Path:
    """Copy a checkpoint to `folder`, with a further token that ends answers."""
    shutil.copytree(source, folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(values | {"eos_token_id": [stop_id]}), encoding="utf-8")
    return folder
