"""Completions for a file of prompts, row by row, whatever the number of rows. Imports no torch."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.errors import DataError
from reallm.generation.completed_rows import ADDED, check_columns, completed
from reallm.generation.completion_file import CompletionFile, partial_folder
from reallm.generation.nonfinite import refuse_nonfinite
from reallm.generation.prompts import Prompt, read_prompts
from reallm.generation.request import Completion, FinishedEvent, Request, TokenEvent

if TYPE_CHECKING:
    from reallm.generation.config import GenerationConfig
    from reallm.generation.engine import GenerationEngine

MAX_RUNNING = 512
"""Most samples that are given to the engine and have not ended."""
MAX_WAITING_ROWS = 16_384
"""Most rows that are read and not written; rows that have ended wait for those before them."""


@dataclass
class _Started:
    """A prompt that the engine works on, or that waits to be written."""

    prompt: Prompt
    n: int
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return len(self.completions) == self.n

    def row(self) -> dict[str, Any]:
        return completed(self.prompt.row.values, [self.completions[sample] for sample in range(self.n)])


def check_prompts(path: str | Path, *, chat: bool, on_row: Callable[[], object]) -> int:
    """Check all rows of a file of prompts before anything is generated; returns how many there are.

    Raises:
        DataError: the file cannot be read, has no rows, or has a wrong one; names the location.
    """
    n_rows = 0
    for prompt in read_prompts(path, chat=chat):
        check_columns(prompt.row)
        n_rows += 1
        on_row()
    return n_rows


def complete_prompts(
    prompts: Iterable[Prompt],
    file: CompletionFile,
    engine: GenerationEngine,
    encode: Callable[[Prompt], Sequence[int]],
    config: GenerationConfig,
    *,
    stopped: Callable[[], bool],
    on_progress: Callable[[int, int], object],
) -> bool:
    """Continue the prompts that a file has no completions of yet, and write each as soon as those before it are.

    The key of a request is the number of its row, so the tokens of a row do not depend on where an earlier call ended.

    Args:
        prompts: all prompts, in order.
        file: the file of their completions.
        engine: the engine, with a decoder for text.
        encode: gives the token ids of a prompt.
        config: settings for sampling tokens and for ending a sequence.
        stopped: whether to end early.
        on_progress: called with the number of rows that were written, and of tokens that were generated.

    Returns:
        Whether all are written.

    Raises:
        DataError: a prompt does not fit the model, or is not the one that the file has a completion of; names its row.
            The rows before it are written.
    """
    rest = iter(prompts)
    _skip_completed(rest, file)
    started: dict[int, _Started] = {}
    order: deque[_Started] = deque()
    n_running = 0
    failed: DataError | None = None
    while not stopped():
        while n_running < MAX_RUNNING and len(order) < MAX_WAITING_ROWS and failed is None:
            prompt = next(rest, None)
            if prompt is None:
                break
            try:
                request = Request(tuple(encode(prompt)), config, key=prompt.row.index)
                number = engine.add(request, name=prompt.row.place)
            except DataError as error:
                failed = error
                break
            started[number] = _Started(prompt, config.n)
            order.append(started[number])
            n_running += config.n
        if not order:
            break
        n_tokens = 0
        for event in engine.step():
            if isinstance(event, TokenEvent):
                n_tokens += 1
            elif isinstance(event, FinishedEvent):
                refuse_nonfinite([(started[event.request_id].prompt.row.place, event.completion)])
                started[event.request_id].completions[event.sample] = event.completion
                n_running -= 1
                if started[event.request_id].has_ended:
                    del started[event.request_id]
        n_rows = 0
        while order and order[0].has_ended:
            file.append(order.popleft().row())
            n_rows += 1
        on_progress(n_rows, n_tokens)
    if failed is not None and not order:
        raise failed
    return not order and next(rest, None) is None


def _skip_completed(prompts: Iterator[Prompt], file: CompletionFile) -> None:
    """Skip the prompts that the file has completions of, after checking that they are the same."""
    for done in file.rows():
        prompt = next(prompts, None)
        carried = {key: value for key, value in done.items() if key not in ADDED}
        if prompt is None or json.dumps(carried) != json.dumps(prompt.row.values):
            place = "the file of prompts" if prompt is None else prompt.row.place
            problem = f"ends before row {file.n_rows}" if prompt is None else "is another row than the one"
            raise DataError(
                f"{place} {problem} that {partial_folder(file.path)} has the completion of; give the same prompts to "
                "go on, or --overwrite to start afresh"
            )
