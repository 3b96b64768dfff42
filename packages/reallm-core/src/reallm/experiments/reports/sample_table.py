"""The completions of `samples.jsonl` grouped by prompt, for the summary page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reallm.data.chat.transcript import split_calls

PROMPTS = 20
EVALUATIONS = 12
"""Maximum number of completions shown of a prompt, including the first and the latest."""

VISIBLE, VISIBLE_LINES = 500, 10
"""Maximum number of characters and lines of a text that are visible without unfolding it."""

LONGEST = 10_000
"""Maximum number of characters of a text on the page; the whole text is in `samples.jsonl`."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Passage:
    """A text that is folded after some lines."""

    visible: str
    folded: str
    """The folded rest of the text; empty for a short text."""
    length: int
    """Number of characters of the whole text; `visible` and `folded` may be only its beginning."""


@dataclass(frozen=True)
class Speech:
    """A text and the tool calls in it, which are shown apart; of a turn also the role that says it, else empty."""

    text: Passage
    calls: tuple[Passage, ...]
    role: str = ""


@dataclass(frozen=True)
class Answer:
    """A completion after a step; `is_expected`: whether it is exactly the expected one."""

    step: int
    speech: Speech
    is_expected: bool


@dataclass(frozen=True)
class PromptHistory:
    """A prompt, its expected completion, and its completions: the latest, the first if different, and those between."""

    id: str
    turns: tuple[Speech, ...]
    """The turns of the prompt; a prompt that is no conversation is one."""
    expected: Speech | None
    latest: Answer
    first: Answer | None
    between: tuple[Answer, ...]
    """The other completions, newest first."""
    n_omitted: int


def prompt_histories(records: Iterable[Mapping[str, Any]]) -> list[PromptHistory]:
    """Group the lines of a `samples.jsonl` by prompt, in the order in which prompts first appear."""
    by_prompt: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if isinstance(record.get("step"), int):
            key = str(record.get("id")), str(record.get("prompt"))
            by_prompt.setdefault(key, {})[record["step"]] = record
    return [_history(*key, steps) for key, steps in list(by_prompt.items())[:PROMPTS]]


def _history(name: str, prompt: str, steps: Mapping[int, Mapping[str, Any]]) -> PromptHistory:
    order = sorted(steps)
    latest, *older = order[::-1]
    first, between = (older[-1], older[:-1]) if older else (None, [])
    shown = _evenly_spaced(between, EVALUATIONS - 2)
    expected, turns = steps[latest].get("expected"), steps[latest].get("turns")
    return PromptHistory(
        _clean(name),
        _turns(turns) or (Speech(passage(prompt), ()),),
        None if expected is None else speech(str(expected)),
        _answer(latest, steps[latest]),
        None if first is None else _answer(first, steps[first]),
        tuple(_answer(step, steps[step]) for step in shown),
        len(between) - len(shown),
    )


def _evenly_spaced(items: list[int], n: int) -> list[int]:
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def _answer(step: int, record: Mapping[str, Any]) -> Answer:
    completion, expected = str(record.get("completion")), record.get("expected")
    return Answer(step, speech(completion), isinstance(expected, str) and completion.strip() == expected.strip())


def _turns(turns: Any) -> tuple[Speech, ...]:
    turns = turns if isinstance(turns, list) else []
    return tuple(
        speech(str(turn.get("text")), _clean(str(turn.get("role")))) for turn in turns if isinstance(turn, Mapping)
    )


def speech(text: str, role: str = "") -> Speech:
    """A text without the tool calls in it, and these."""
    said, calls = split_calls(text)
    return Speech(passage(said), tuple(passage(call) for call in calls), role)


def passage(text: str) -> Passage:
    """A text without control characters, folded if it is long."""
    shown = _clean(text[:LONGEST])
    visible = "".join(shown[:VISIBLE].splitlines(keepends=True)[:VISIBLE_LINES])
    if visible != shown:
        visible = visible[: visible.rfind(" ", VISIBLE - 40) + 1] or visible  # not within a word
    return Passage(visible, shown[len(visible) :], len(text))


def _clean(text: str) -> str:
    """Replace control characters, which untrained models do generate, by dots."""
    return _CONTROL.sub("·", text)
