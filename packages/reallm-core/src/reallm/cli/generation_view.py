"""Output of `reallm generate` while tokens are generated: texts for people, or a JSON object for each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import typer

from reallm.errors import counted
from reallm.generation.completed_rows import completed
from reallm.generation.prompts import Prompt
from reallm.generation.request import Completion, Event, FinishedEvent
from reallm.printable import json_line, printable

Write = Callable[[str], object]
"""Function that writes text."""


class ShownText:
    """A text that comes in pieces, as it is shown: without whitespace at its ends, and without control characters."""

    def __init__(self) -> None:
        self._has_begun = False
        self._whitespace = ""

    def push(self, piece: str) -> str:
        """What to show now."""
        text = self._whitespace + piece
        shown = text.rstrip()
        self._whitespace = text[len(shown) :]
        shown = shown if self._has_begun else shown.lstrip()
        self._has_begun = self._has_begun or bool(shown)
        return printable(shown)


def ending(completion: Completion) -> str:
    """What is shown after a text that did not end by itself, or that is empty."""
    n_tokens = counted(len(completion.token_ids), "token")
    match completion.finish_reason:
        case "length":
            return note(f"\n[cut after {n_tokens}; --max-new-tokens N for more]")
        case "cancelled":
            return note(f"\n[interrupted after {n_tokens}]")
        case _:
            return "" if (completion.text or "").strip() else note("[ended without text]")


def note(text: str) -> str:
    """Text that is not the model's."""
    return typer.style(text, dim=True)


@dataclass
class _Sample:
    """A sample, and what of it is not shown yet."""

    heading: str
    text: ShownText = field(default_factory=ShownText)
    unshown: str = ""
    has_begun: bool = False
    completion: Completion | None = None


class TextView:
    """Writes one sample after the other: the first that has not ended while it is generated.

    Args:
        prompts: the prompts of the requests of an engine, in their order; they are quoted.
        n: number of samples of each.
        write: where to write.
    """

    def __init__(self, prompts: Sequence[Prompt], n: int, write: Write) -> None:
        self._n, self._write = n, write
        self._samples = [_Sample(_heading(prompt, sample, n)) for prompt in prompts for sample in range(n)]
        for sample in self._samples[1:]:
            sample.heading = f"\n{sample.heading}"
        self._current = 0

    def show(self, event: Event) -> None:
        """Write what can be shown of the current sample, and then of those after it."""
        sample = self._samples[event.request_id * self._n + event.sample]
        sample.unshown += sample.text.push(event.text)
        if isinstance(event, FinishedEvent):
            sample.completion = event.completion
        sample.has_begun = sample.has_begun or sample.completion is None or bool(sample.completion.token_ids)
        while self._current < len(self._samples) and self._show_current():
            self._current += 1

    def _show_current(self) -> bool:
        """Write what is new of the current sample; returns whether it has ended."""
        sample = self._samples[self._current]
        if sample.has_begun:
            self._write(sample.heading + sample.unshown)
            sample.heading = sample.unshown = ""
            if sample.completion is not None:
                self._write(f"{ending(sample.completion)}\n")
        return sample.completion is not None


class JsonView:
    """Writes a line for each prompt when all its samples have ended, in order.

    Args:
        prompts: the prompts of the requests of an engine, in their order; their rows are carried along.
        n: number of samples of each.
        write: where to write.
    """

    def __init__(self, prompts: Sequence[Prompt], n: int, write: Write) -> None:
        self._prompts, self._n, self._write = prompts, n, write
        self._ended: list[dict[int, Completion]] = [{} for _ in prompts]
        self._current = 0

    def show(self, event: Event) -> None:
        """Write the lines that are complete."""
        if not isinstance(event, FinishedEvent):
            return
        self._ended[event.request_id][event.sample] = event.completion
        while self._current < len(self._prompts) and len(self._ended[self._current]) == self._n:
            completions = [self._ended[self._current][sample] for sample in range(self._n)]
            if any(completion.token_ids for completion in completions):  # otherwise it was interrupted before it began
                row = completed(self._prompts[self._current].row.values, completions)
                self._write(json_line(row))
            self._current += 1


def _heading(prompt: Prompt, sample: int, n: int) -> str:
    """The quoted prompt, and the number of the sample if there are several."""
    quoted = "\n".join(f"> {line}" for line in printable(prompt.text).splitlines())
    heading = f"{typer.style(quoted, bold=True)}\n" if sample == 0 else ""
    return heading if n == 1 else f"{heading}{note(f'[{sample + 1} of {n}]')}\n"
