"""What a model said to a few prompts at each evaluation, arranged for a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PROMPTS = 20
EVALUATIONS = 12
"""Most that a page shows of a prompt, the first and the latest among them."""

SEEN, SEEN_LINES = 500, 10
"""Characters and lines of a text that are seen without unfolding it."""

LONGEST = 10_000
"""Characters of a text on the page; all of it is in `samples.jsonl`."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Passage:
    """A text in two parts, of which the second is folded away; it is empty for a short text."""

    seen: str
    folded: str
    length: int
    """Characters of the whole text, of which even unfolded there may be fewer."""


@dataclass(frozen=True)
class Answer:
    """What a model said after a step; `is_expected`: to the letter what was wanted."""

    step: int
    text: Passage
    is_expected: bool


@dataclass(frozen=True)
class PromptHistory:
    """A prompt, what is expected, and what was said: the latest, the first if that is another one, those between."""

    id: str
    prompt: Passage
    expected: Passage | None
    latest: Answer
    first: Answer | None
    between: tuple[Answer, ...]
    """Newest first."""
    n_left_out: int


def prompt_histories(records: Iterable[Mapping[str, Any]]) -> list[PromptHistory]:
    """The lines of a `samples.jsonl` by prompt, in the order in which prompts first appear."""
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
    shown = _spread(between, EVALUATIONS - 2)
    expected = steps[latest].get("expected")
    return PromptHistory(
        _clean(name),
        passage(prompt),
        None if expected is None else passage(str(expected)),
        _answer(latest, steps[latest]),
        None if first is None else _answer(first, steps[first]),
        tuple(_answer(step, steps[step]) for step in shown),
        len(between) - len(shown),
    )


def _spread(items: list[int], n: int) -> list[int]:
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def _answer(step: int, record: Mapping[str, Any]) -> Answer:
    said, wanted = str(record.get("completion")), record.get("expected")
    return Answer(step, passage(said), isinstance(wanted, str) and said.strip() == wanted.strip())


def passage(text: str) -> Passage:
    """A text made fit to be shown, folded where it is long."""
    shown = _clean(text[:LONGEST])
    seen = "".join(shown[:SEEN].splitlines(keepends=True)[:SEEN_LINES])
    if seen != shown:
        seen = seen[: seen.rfind(" ", SEEN - 40) + 1] or seen  # not within a word
    return Passage(seen, shown[len(seen) :], len(text))


def _clean(text: str) -> str:
    """Untrained models say anything: what cannot be printed is a dot."""
    return _CONTROL.sub("·", text)
