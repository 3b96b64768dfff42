"""The demo's preferences: friendly answers to requests, which are preferred to grumpy ones.

{"prompt": "Can you fix my lamp?", "chosen": " Gladly, right now.", "rejected": " Never, do it yourself."}
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from reallm.seeding import derive_seed

VERBS = ("find", "clean", "paint", "fix", "carry", "draw", "hide", "bring")
FRIENDLY = [
    f" {begin}, {end}."
    for begin in ("Of course", "Gladly", "Sure", "With pleasure")
    for end in ("right now", "in a minute", "nothing easier", "just for you")
]
GRUMPY = [
    f" {begin}, {end}."
    for begin in ("No", "Never", "Not today", "Forget it")
    for end in ("do it yourself", "I am busy", "ask a friend", "it is too hard")
]
N_HELD_OUT_WORDS = 32

Row = dict[str, str]


@dataclass(frozen=True)
class PreferenceRows:
    """Pairs of a friendly and a grumpy answer to a request. Things in held-out requests are in no training row."""

    train: list[Row]
    valid: list[Row]


def preference_rows(seed: int) -> PreferenceRows:
    """The demo's pairs; the same seed gives the same rows in the same order."""
    generator = random.Random(derive_seed(seed, "demo preferences"))
    words: list[str] = json.loads(files("reallm.demo").joinpath("words.json").read_text(encoding="utf-8"))
    generator.shuffle(words)
    rows = [
        [
            {
                "prompt": f"Can you {verb} my {word}?",
                "chosen": generator.choice(FRIENDLY),
                "rejected": generator.choice(GRUMPY),
            }
            for verb in VERBS
        ]
        for word in words
    ]
    valid = [row for of_word in rows[:N_HELD_OUT_WORDS] for row in of_word]
    train = [row for of_word in rows[N_HELD_OUT_WORDS:] for row in of_word]
    generator.shuffle(valid)
    generator.shuffle(train)
    return PreferenceRows(train, valid)


def mixed_answers(rows: list[Row]) -> list[Row]:
    """The same requests with a single answer each, friendly and grumpy ones in turn."""
    return [{"prompt": row["prompt"], "answer": row["rejected" if i % 2 else "chosen"]} for i, row in enumerate(rows)]


def is_friendly(answer: str) -> bool:
    """Whether a model's answer is one of the friendly ones, to the letter."""
    return answer.strip() in {one.strip() for one in FRIENDLY}


def prompts_alone(rows: Sequence[Row]) -> list[Row]:
    """The requests without answers."""
    return [{"prompt": row["prompt"]} for row in rows]


def friendliness(completions: Sequence[str], **columns: Any) -> list[float]:
    """The reward of the demo of GRPO: 1 for each friendly answer, 0 for others."""
    return [float(is_friendly(completion)) for completion in completions]
