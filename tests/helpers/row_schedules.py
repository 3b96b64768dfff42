"""Schedules of steps over rows, for tests of what computes them: given texts, placed as simply as possible."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reallm.generation.step import CacheCopy, Row, ScheduledSequence, Step
from reallm.model.config import ReaLModelConfig
from reallm.model.rope import keys_are_stale


@dataclass
class Text:
    """A sequence whose tokens are known beforehand."""

    tokens: list[int]
    n_cached: int = 0
    row: Row | None = None


class RowSchedule:
    """Places texts in rows: in the lowest one that is free, of the lowest capacity that is enough."""

    def __init__(self, config: ReaLModelConfig, texts: Iterable[Sequence[int]], capacities: Sequence[int]) -> None:
        self.config, self.capacities = config, capacities
        self.texts = [Text(list(tokens)) for tokens in texts]
        self.copies: list[CacheCopy] = []

    def step(self, lengths: dict[int, int]) -> tuple[Step, list[list[int]]]:
        """Compute the next `lengths[i]` tokens of text `i`, for each, in this order; the step and its new tokens."""
        sequences, token_ids = [], []
        for index, n_new in lengths.items():
            text = self.texts[index]
            total = text.n_cached + n_new
            if keys_are_stale(self.config, [text.n_cached], [total]):
                text.n_cached = 0
            self._place(text, total)
            sequences.append(ScheduledSequence(index, text.n_cached, total - text.n_cached, text.row, samples=True))
            token_ids.append(text.tokens[text.n_cached : total])
            text.n_cached = total
        step = Step(tuple(sequences), tuple(self.copies), self.n_rows())
        self.copies = []
        return step, token_ids

    def fork(self, source: int, tokens: Sequence[int]) -> None:
        """Add a text that begins with all cached tokens of another one."""
        old = self.texts[source]
        assert list(tokens[: old.n_cached]) == old.tokens[: old.n_cached]
        new = Text(list(tokens))
        self._place(new, old.n_cached)
        self.copies.append(CacheCopy(old.row, new.row, old.n_cached))
        new.n_cached = old.n_cached
        self.texts.append(new)

    def leave(self, index: int) -> None:
        """Give the row of a text back."""
        self.texts[index] = Text([])

    def n_rows(self) -> dict[int, int]:
        """Capacity -> number of rows up to the highest in use."""
        rows = sorted(text.row for text in self.texts if text.row)
        return {row.capacity: row.index + 1 for row in rows}

    def _place(self, text: Text, total: int) -> None:
        capacity = next(each for each in self.capacities if each >= total)
        old = text.row
        if old is not None and old.capacity >= capacity:
            return
        used = {each.row for each in self.texts} | {copy.source for copy in self.copies}
        text.row = next(row for index in range(1000) if (row := Row(capacity, index)) not in used)
        if old is not None and text.n_cached:
            self.copies.append(CacheCopy(old, text.row, text.n_cached))


def random_lengths(schedule: RowSchedule, rng: random.Random, longest: int) -> dict[int, int]:
    """Some new tokens of some texts, often one and sometimes up to `longest`, in any order."""
    lengths = {}
    for index, text in enumerate(schedule.texts):
        left = len(text.tokens) - text.n_cached
        if left and rng.random() < 0.7:
            lengths[index] = 1 if rng.random() < 0.6 else rng.randint(1, min(left, longest))
    order = list(lengths)
    rng.shuffle(order)
    return {index: lengths[index] for index in order}
