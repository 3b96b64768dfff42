"""`Scheduler`: decides which tokens of which sequences the next forward pass computes.

Sequences that decode come first, then those in the middle of their prompts, then those that wait, in the order in which
they came. What it decides is a pure function of the calls: no clock, no randomness, no torch.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter

from reallm.generation.cache_manager import CacheManager
from reallm.generation.prefix_index import KeysAreStale
from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Placement, ScheduledSequence, Step

MAX_BATCH_TOKENS = 2048
"""Most tokens that a forward pass computes, unless told otherwise."""
MAX_BATCH_SEQUENCES = 256
"""Most sequences that run at the same time, unless told otherwise."""
_BY_ID = attrgetter("id")


class Scheduler:
    """The sequences that run, which have room in the cache, and those that wait for it.

    Args:
        manager: gives sequences room in the cache.
        max_batch_tokens: most tokens that a forward pass computes; more only if a sequence has to be computed whole.
        max_batch_sequences: most sequences that run at the same time.
        keys_are_stale: whether keys depend on the length of a sequence, which is then computed whole again. None: they
            never do.
        n_steps: number of steps that are computed at the same time, such as the stages of a pipeline: each takes its
            share of the sequences, and those that wait for their next token are in none.
    """

    def __init__(
        self,
        manager: CacheManager,
        *,
        max_batch_tokens: int,
        max_batch_sequences: int,
        keys_are_stale: KeysAreStale | None = None,
        n_steps: int = 1,
    ) -> None:
        self._manager = manager
        self._max_tokens = max_batch_tokens
        self.max_sequences = min(max_batch_sequences, max_batch_tokens)
        """Most sequences that run at the same time."""
        self._keys_are_stale, self._n_steps = keys_are_stale, n_steps
        self._by_id: dict[int, SequenceState] = {}
        self._waiting: list[SequenceState] = []
        self._running: dict[int, SequenceState] = {}
        self._planned_copies: list[CacheCopy] = []
        """Copies that were planned while all sequences were in flight, for the next step that has some."""

    @property
    def has_work(self) -> bool:
        """Whether a sequence runs or waits."""
        return bool(self._by_id)

    @property
    def running_ids(self) -> list[int]:
        """Numbers of the sequences that run."""
        return [*self._running]

    def add(self, sequence_id: int, tokens: Sequence[int], *, parent_id: int | None = None, n_shared: int = 0) -> None:
        """Let a sequence wait.

        Args:
            sequence_id: its number; those with lower numbers come first.
            tokens: its first tokens.
            parent_id: a running sequence with the same prompt, whose cache has it.
            n_shared: number of tokens of that prompt.
        """
        sequence = SequenceState(sequence_id, list(tokens), parent_id=parent_id, n_shared=n_shared)
        self._by_id[sequence_id] = sequence
        insort(self._waiting, sequence, key=_BY_ID)

    def n_tokens(self, sequence_id: int) -> int:
        """Number of tokens of a sequence, the generated ones included."""
        return len(self._by_id[sequence_id].tokens)

    def append(self, sequence_id: int, token: int) -> None:
        """Append a token to a sequence that a step has sampled."""
        sequence = self._by_id[sequence_id]
        sequence.tokens.append(token)
        sequence.awaits_token = False

    def remove(self, sequence_id: int) -> None:
        """End a sequence, running or waiting."""
        running = self._take_out(sequence_id)
        if running is not None:
            self._manager.finish(running)

    def discard(self, sequence_id: int) -> Placement | None:
        """End a sequence whose tokens nobody may use; returns the room that only it has, if it runs."""
        running = self._take_out(sequence_id)
        return None if running is None else self._manager.discard(running)

    def new_tokens(self, scheduled: ScheduledSequence) -> list[int]:
        """The tokens of a sequence that a step computes."""
        return self._by_id[scheduled.sequence_id].tokens[scheduled.n_cached : scheduled.n_cached + scheduled.n_new]

    def schedule(self) -> Step:
        """Plan the next step, which has no sequences, and no copies, if there is no work or all of it is in flight.

        The caller makes its copies and computes its tokens, and then calls `computed`. A sequence that it samples is in
        no other step until `append`, `remove` or `discard` is called for it.
        """
        copies, self._planned_copies = self._planned_copies, []
        planned: dict[SequenceState, int] = {}
        self._continue_running(planned, copies)
        self._admit_waiting(planned, copies)
        if not self._waiting:  # which would take the free rows
            copies += self._manager.close_gaps()
        if not planned:
            self._planned_copies = copies
            return Step(())
        place = self._manager.placement
        sequences = tuple(
            ScheduledSequence(each.id, each.n_cached, n_new, place(each), n_new == each.n_uncached)
            for each, n_new in planned.items()
        )
        for each, scheduled in zip(planned, sequences, strict=True):
            each.awaits_token = scheduled.samples
        return Step(sequences, tuple(copies), self._manager.n_rows)

    def computed(self, step: Step) -> None:
        """Note that the tokens of a step are in the cache."""
        for scheduled in step.sequences:
            sequence = self._by_id[scheduled.sequence_id]
            sequence.n_cached = scheduled.n_cached + scheduled.n_new
            self._manager.computed(sequence)

    def forget_cache(self) -> None:
        """Let all sequences be computed from their first token; no step is in flight."""
        for sequence in [*self._running.values()]:
            self._suspend(sequence)
        for sequence in self._waiting:
            sequence.awaits_token = False
        self._manager.forget()
        self._planned_copies.clear()

    # ------------------------------------------------------------------ private helpers

    def _take_out(self, sequence_id: int) -> SequenceState | None:
        """Schedule a sequence no longer; returns it if it was running, and so has room in the cache."""
        sequence = self._by_id.pop(sequence_id)
        if sequence_id not in self._running:
            self._waiting.remove(sequence)
        return self._running.pop(sequence_id, None)

    def _continue_running(self, planned: dict[SequenceState, int], copies: list[CacheCopy]) -> None:
        """Plan the running sequences while there are tokens for them."""
        budget, share = self._max_tokens, self._share(len(self._running))
        # those that decode come first: they have a single token to compute
        for sequence in sorted(self._running.values(), key=lambda each: (each.n_uncached > 1, each.id)):
            if budget <= 0 or len(planned) >= share:
                break
            if sequence.awaits_token:
                continue
            if self._is_stale(sequence):
                self._suspend(sequence)
            elif self._make_room(sequence, planned, copies):
                planned[sequence] = self._n_new(sequence, budget)
                budget -= planned[sequence]

    def _admit_waiting(self, planned: dict[SequenceState, int], copies: list[CacheCopy]) -> None:
        """Plan waiting sequences while there are tokens, places and room for them."""
        budget = self._max_tokens - sum(planned.values())
        share = self._share(min(len(self._by_id), self.max_sequences))
        for sequence in [*self._waiting]:
            if budget <= 0 or len(self._running) >= self.max_sequences or len(planned) >= share:
                break
            if sequence.awaits_token or self._manager.waits(sequence):
                continue
            allocation = self._manager.allocate(sequence)
            if allocation is None:
                break
            copies += allocation.copies
            sequence.n_cached = allocation.n_cached
            self._waiting.remove(sequence)
            self._running[sequence.id] = sequence
            planned[sequence] = self._n_new(sequence, budget)
            budget -= planned[sequence]

    def _share(self, n_sequences: int) -> int:
        """How many of the sequences one step takes."""
        return -(-n_sequences // self._n_steps)

    def _n_new(self, sequence: SequenceState, budget: int) -> int:
        """Number of tokens of a sequence that the next pass computes."""
        n_new = min(budget, sequence.n_uncached)
        if self._keys_are_stale is None or not self._keys_are_stale(sequence.n_cached + n_new, len(sequence.tokens)):
            return n_new
        return sequence.n_uncached  # the keys of a part would not be those of the whole

    def _is_stale(self, sequence: SequenceState) -> bool:
        stale = self._keys_are_stale
        return stale is not None and sequence.n_cached > 0 and stale(sequence.n_cached, len(sequence.tokens))

    def _make_room(self, sequence: SequenceState, planned: dict[SequenceState, int], copies: list[CacheCopy]) -> bool:
        """Give a running sequence room for all its tokens, if need be that of newer ones; False: it has lost its own.

        The oldest never loses its room, so that it always gets on.
        """
        while sequence.id in self._running:
            moves = self._manager.grow(sequence)
            if moves is not None:
                copies += moves
                return True
            newest = self._running[max(self._running)]
            planned.pop(newest, None)
            self._suspend(newest)
        return False

    def _suspend(self, sequence: SequenceState) -> None:
        """Let a running sequence wait for room, and be computed from its first token then."""
        del self._running[sequence.id]
        self._manager.suspend(sequence)
        sequence.n_cached = 0
        insort(self._waiting, sequence, key=_BY_ID)
