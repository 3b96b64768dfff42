"""The demo's data: small tasks with a rule, so that held-out rows show whether it was learned.

{"prompt": "Spell river.", "answer": " r-i-v-e-r"}
{"prompt": "Shout lamp.", "answer": " LAMP!"}
{"prompt": "What comes after 41?", "answer": " 42"}
{"prompt": "What is 7 + 5?", "answer": " 12"}
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from importlib.resources import files

from reallm.seeding import derive_seed

Row = dict[str, str]

N_MADE_UP_WORDS = 500
LARGEST_SUMMAND = 15
LARGEST_SUCCESSOR = 199
HELD_OUT_SHARE = 0.1
NUMBER_REPEATS = 3
"""Number of times that an epoch has each row with numbers: they are few, and carrying is hard."""


@dataclass(frozen=True)
class DemoRows:
    """Training rows, held-out rows, and some of both to show."""

    train: list[Row]
    valid: list[Row]
    shown: list[Row]


def demo_rows(seed: int) -> DemoRows:
    """The demo's rows; the same seed gives the same rows in the same order."""
    generator = random.Random(derive_seed(seed, "demo rows"))
    words: list[str] = json.loads(_resource("words.json"))
    facts: list[Row] = [json.loads(line) for line in _resource("facts.jsonl").splitlines()]
    real = [[_spell(word), _shout(word)] for word in words]
    summands = range(LARGEST_SUMMAND + 1)
    sums = [[_sum(a, b)] for a in summands for b in summands if a < b]
    other_sums = [_sum(a, b) for a in summands for b in summands if a >= b]  # 5 + 7 can be learned from 7 + 5
    successors = [[_successor(number)] for number in range(LARGEST_SUCCESSOR + 1)]

    train = [row for word in _made_up_words(generator, set(words)) for row in (_spell(word), _shout(word))]
    valid, shown = [], [facts[0]]
    for groups, repeats in ((real, 1), (sums, NUMBER_REPEATS), (successors, NUMBER_REPEATS)):
        generator.shuffle(groups)
        n_held_out = int(len(groups) * HELD_OUT_SHARE)
        held_out = [row for group in groups[:n_held_out] for row in group]
        valid += held_out
        shown += held_out[:2]
        train += [row for group in groups[n_held_out:] for row in group] * repeats
    train += other_sums * NUMBER_REPEATS
    train += facts * 10  # facts follow no rule: they must be memorized
    generator.shuffle(train)
    return DemoRows(train, valid, shown)


def _made_up_words(generator: random.Random, taken: set[str]) -> list[str]:
    """Random words, so that spelling must be learned letter by letter."""
    found: dict[str, None] = {}
    while len(found) < N_MADE_UP_WORDS:
        word = "".join(generator.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(generator.randint(3, 8)))
        if word not in taken:
            found[word] = None
    return list(found)


def _spell(word: str) -> Row:
    return {"prompt": f"Spell {word}.", "answer": f" {'-'.join(word)}"}


def _shout(word: str) -> Row:
    return {"prompt": f"Shout {word}.", "answer": f" {word.upper()}!"}


def _sum(a: int, b: int) -> Row:
    return {"prompt": f"What is {a} + {b}?", "answer": f" {a + b}"}


def _successor(number: int) -> Row:
    return {"prompt": f"What comes after {number}?", "answer": f" {number + 1}"}


def _resource(name: str) -> str:
    return files("reallm.demo").joinpath(name).read_text(encoding="utf-8")
