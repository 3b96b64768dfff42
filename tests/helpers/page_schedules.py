"""Schedules of steps over pages, for tests of what computes them, and attention over pages without a kernel."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from reallm.generation.page_store import PageStore
from reallm.generation.step import CacheCopy, Pages, ScheduledSequence, Step
from reallm.model.attention.functional import attend_sequence
from reallm.model.transformer import Transformer


def gather_and_attend(q, keys, values, seqs, spec):
    """What `varlen.attend_pages` computes, sequence by sequence."""
    outputs = []
    for new, ids, total in zip(q.split(seqs.cu_seqlens.diff().tolist()), seqs.pages, seqs.totals.tolist(), strict=True):
        ids = ids[: -(-total // keys.shape[1])].long()
        held = (pages[ids].flatten(0, 1)[:total].transpose(0, 1) for pages in (keys, values))
        outputs.append(attend_sequence(new, *held, spec))
    return torch.cat(outputs)


def small_store(model: Transformer, n_pages: int, page_size: int = 4) -> PageStore:
    """Pages for a float64 model on the CPU, with attention that needs no kernel."""
    store = PageStore(model.cache_specs(), n_pages, dtype=torch.float64, device="cpu", attend=gather_and_attend)
    store.page_size = page_size
    return store


@dataclass
class Text:
    """A sequence whose tokens are known beforehand."""

    tokens: list[int]
    n_cached: int = 0
    pages: list[int] = field(default_factory=list)


class PageSchedule:
    """Gives texts any free pages, and prefixes of others in common."""

    def __init__(self, texts: Iterable[Sequence[int]], n_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.texts = [Text(list(tokens)) for tokens in texts]
        self.free = list(range(n_pages))
        random.Random(0).shuffle(self.free)
        self.copies: list[CacheCopy] = []

    def step(self, lengths: dict[int, int]) -> tuple[Step, list[list[int]]]:
        """Compute the next `lengths[i]` tokens of text `i`, for each, in this order; the step and its new tokens."""
        sequences, token_ids = [], []
        for index, n_new in lengths.items():
            text = self.texts[index]
            total = text.n_cached + n_new
            while len(text.pages) * self.page_size < total:
                text.pages.append(self.free.pop())
            place = Pages(tuple(text.pages))
            sequences.append(ScheduledSequence(index, text.n_cached, n_new, place, samples=True))
            token_ids.append(text.tokens[text.n_cached : total])
            text.n_cached = total
        step = Step(tuple(sequences), tuple(self.copies))
        self.copies = []
        return step, token_ids

    def fork(self, source: int, tokens: Sequence[int]) -> None:
        """Add a text that begins with the cached tokens of another one: it reads full pages, and copies the last."""
        old = self.texts[source]
        n_full = old.n_cached // self.page_size
        new = Text(list(tokens), old.n_cached, [*old.pages[:n_full], *(self.free.pop() for _ in old.pages[n_full:])])
        self.copies.append(CacheCopy(Pages(tuple(old.pages)), Pages(tuple(new.pages)), old.n_cached))
        self.texts.append(new)

    def leave(self, index: int) -> None:
        """Give the pages of a text back that no other text reads."""
        others = {page for i, text in enumerate(self.texts) if i != index for page in text.pages}
        self.free += [page for page in self.texts[index].pages if page not in others]
        self.texts[index] = Text([])
