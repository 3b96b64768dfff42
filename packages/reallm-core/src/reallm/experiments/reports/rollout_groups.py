"""The rollouts of `rollouts.jsonl` as the page of a run shows them: some steps, their answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm.errors import DataError, counted
from reallm.experiments.reports.number_format import number
from reallm.experiments.reports.preview_text import visible
from reallm.experiments.reports.sample_table import Passage, passage
from reallm.experiments.runs.metrics import is_number
from reallm.experiments.runs.rollouts import read_rollouts
from reallm.foreign_files import reading

STEPS = 6
"""Most steps on the page, from the first to the last; it stays below about a megabyte."""
PROMPTS = 3
"""Most prompts of a step."""
ANSWERS = 8
"""Most answers to a prompt."""
TOKENS = 100
"""Most tokens of an answer."""
DARKEST = 75
"""Opacity, in percent, of the colour of the largest number."""
FULL = {"logprobs": 5.0, "difference": 0.1, "kl": 1.0, "advantages": 2.0}
"""Numbers of a token -> the size, in nats or advantage, from which the colour is darkest."""
NAMES = {"logprobs": "log-probability", "difference": "difference to training", "kl": "KL", "advantages": "advantage"}


@dataclass(frozen=True)
class ShownToken:
    """A token: its text, CSS class and colours, and what is said about it."""

    text: str
    css: str
    style: str
    about: str


@dataclass(frozen=True)
class ShownAnswer:
    """An answer with its reward, and its tokens."""

    title: str
    parts: str
    """The rewards that the title sums up, if there are several."""
    about: str
    tokens: tuple[ShownToken, ...]
    n_omitted: int


@dataclass(frozen=True)
class ShownGroup:
    """A prompt with the answers to it."""

    id: str
    prompt: Passage
    is_flat: bool
    answers: tuple[ShownAnswer, ...]
    n_omitted: int


@dataclass(frozen=True)
class ShownStep:
    """The groups of a step."""

    step: int
    about: str
    groups: tuple[ShownGroup, ...]


def shown_steps(file: Path) -> list[ShownStep]:
    """Some steps of a run's rollouts, the first and the last among them; none without the file."""
    steps = [_step(step, records) for step, records in read_rollouts(file, STEPS, PROMPTS).items()]
    return [step for step in steps if step.groups]


def _step(step: int, records: Sequence[Mapping[str, Any]]) -> ShownStep:
    groups: list[ShownGroup] = []
    rewards: list[float] = []
    for record in records:
        with suppress(DataError), reading("a record", error=DataError):  # one that is not a run's is left out
            group = _group(record)
            rewards += [answer["reward"] for answer in record["answers"] if is_number(answer["reward"])]
            groups.append(group)
    about = f"mean reward {number(sum(rewards) / len(rewards))}" if rewards else ""
    return ShownStep(step, about, tuple(groups))


def _group(record: Mapping[str, Any]) -> ShownGroup:
    answers = record["answers"]
    return ShownGroup(
        visible(record["id"]),
        passage(record["prompt"]),
        record["no_variance"],
        tuple(map(_answer, answers[:ANSWERS])),
        max(0, len(answers) - ANSWERS),
    )


def _answer(answer: Mapping[str, Any]) -> ShownAnswer:
    parts, reward = answer["reward_parts"], answer["reward"]
    texts = [f"{name} {_text(value)}" for name, value in parts.items()]
    ended = answer["ended_by"]
    how = {"length": "cut at the longest length", "": "ended"}.get(ended, f"ended by {visible(ended)}")
    about = [counted(answer["length"], "token"), how]
    about += [f"advantage {number(answer['advantage'])}"] if answer["advantage"] is not None else []
    n_tokens = len(answer["tokens"])
    return ShownAnswer(
        f"reward {_text(reward)}" if reward is not None or parts else "",
        ", ".join(texts) if len(texts) > 1 else "",
        ", ".join(about),
        tuple(_token(answer, i) for i in range(min(TOKENS, n_tokens))),
        max(0, n_tokens - TOKENS),
    )


def _token(answer: Mapping[str, Any], i: int) -> ShownToken:
    numbers = {name: answer[name][i] for name in FULL if answer[name] is not None and answer[name][i] is not None}
    style = ";".join(
        f"--{name[0]}:{shade}"
        for name, value in numbers.items()
        if (shade := round(DARKEST * min(1.0, abs(value) / FULL[name])))
    )
    is_trained = answer["mask"][i]
    about = [f"{NAMES[name]} {number(value)}" for name, value in numbers.items()]
    css = ["m"] * (not is_trained) + ["n"] * (numbers.get("advantages", 0) < 0)
    return ShownToken(
        visible(answer["tokens"][i]) or "·", " ".join(css), style, ", ".join(about + ["not trained"] * (not is_trained))
    )


def _text(value: float | None) -> str:
    return "none" if value is None else number(value)
