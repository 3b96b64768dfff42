"""A cache that holds tokens instead of keys and values: what a scheduler plans is done to it, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reallm.generation.cache_manager import CacheManager
from reallm.generation.step import Pages, Placement, Row, ScheduledSequence, Step

Stamp = tuple[int, int]
"""What is kept of a token: the token, and how it is rotated."""


class CacheModel:
    """Rows or pages of a cache, in which each token leaves a stamp.

    Args:
        manager: the manager whose plans are done.
        page_size: number of tokens of a page.
        has_states: whether a row also keeps a state, which all tokens of its sequence so far determine.
    """

    def __init__(self, manager: CacheManager, page_size: int, *, has_states: bool = False) -> None:
        self.manager, self.page_size, self.has_states = manager, page_size, has_states
        self.states: dict[Placement, list[Stamp]] = {}
        self.rows: dict[Row, list[Stamp]] = {}
        self.pages: dict[int, list[Stamp]] = {}

    def read(self, place: Placement, n_tokens: int) -> list[Stamp]:
        """The stamps of the first tokens at a place."""
        if isinstance(place, Row):
            return self.rows.get(place, [])[:n_tokens]
        return [stamp for page in place.ids for stamp in self.pages.get(page, [])][:n_tokens]

    def write(self, place: Placement, start: int, stamps: list[Stamp]) -> None:
        """Write stamps behind the first `start` tokens of a place; whatever was there is lost."""
        if isinstance(place, Row):
            assert start + len(stamps) <= place.capacity
            self.rows[place] = self.rows.get(place, [])[:start] + stamps
            return
        for position, stamp in enumerate(stamps, start):
            page = place.ids[position // self.page_size]
            self.pages[page] = [*self.pages.get(page, [])[: position % self.page_size], stamp]

    def erase(self, place: Placement) -> None:
        """Forget what is at a place."""
        if isinstance(place, Row):
            self.rows.pop(place, None)
            return
        for page in place.ids:
            self.pages.pop(page, None)

    def do(self, step: Step, tokens: dict[int, list[int]], rotation: Callable[[int], int]) -> None:
        """Make the copies of a step and write its tokens, after checks that all is where it should be.

        Args:
            step: the step.
            tokens: number of a sequence -> all its tokens.
            rotation: number of tokens of a sequence that are there in a pass -> the second number of their stamps.
        """
        for copy in step.copies:
            self.write(copy.target, 0, self.read(copy.source, copy.n_tokens))
            self.states[copy.target] = self.states.get(copy.source, [])
        for row in [row for row in self.rows if row.index >= step.n_rows.get(row.capacity, 0)]:
            del self.rows[row]
        assert sum(capacity * n for capacity, n in step.n_rows.items()) <= self.manager.n_tokens
        written: list[object] = []
        stamps = {
            each.sequence_id: [(token, rotation(each.n_cached + each.n_new)) for token in tokens[each.sequence_id]]
            for each in step.sequences
        }
        for each in step.sequences:
            place, found = each.placement, self.read(each.placement, each.n_cached)
            assert found == stamps[each.sequence_id][: each.n_cached], "the cache has something else"
            if self.has_states and each.n_cached:
                assert self.states[place] == found, "the state is not that of these tokens"
            if isinstance(place, Row):
                assert place.index < step.n_rows[place.capacity]
            written += self._written(each)
        assert len(written) == len({*written}), "two sequences write to the same place"
        for each in step.sequences:
            new = stamps[each.sequence_id][each.n_cached : each.n_cached + each.n_new]
            self.write(each.placement, each.n_cached, new)
            if self.has_states:
                self.states[each.placement] = [*(self.states[each.placement] if each.n_cached else ()), *new]
            assert each.samples == (each.n_cached + each.n_new == len(tokens[each.sequence_id]))

    def _written(self, scheduled: ScheduledSequence) -> Iterator[object]:
        place = scheduled.placement
        if isinstance(place, Row):
            yield place
        else:
            assert isinstance(place, Pages)
            first, last = scheduled.n_cached, scheduled.n_cached + scheduled.n_new - 1
            yield from place.ids[first // self.page_size : last // self.page_size + 1]
