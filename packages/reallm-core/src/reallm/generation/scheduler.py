"""`Scheduler`: decides which tokens of which sequences the next forward pass computes.

Sequences that decode come first, then those in the middle of their prompts, then those that wait, in the order in which
they came. It is a pure function of the calls: no clock, no randomness, no torch.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter

from reallm.generation.cache_manager import CacheManager
from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Placement, ScheduledSequence, Step

_BY_ID = attrgetter("id")


class Scheduler:
    """The sequences that run and those that wait.

    Args:
        manager: gives sequences room in the cache.
        max_batch_tokens: most tokens that a forward pass computes; more only if a sequence has to be computed whole.
        max_batch_sequences: most sequences that have room in the cache at the same time.
        keys_are_stale: `keys_are_stale(n_cached, n_tokens)`: whether the cache of a sequence's first `n_cached` tokens
            is useless once it has `n_tokens`, because frequencies depend on the length (dynamic RoPE). None: never.
        n_steps: number of steps that are computed at the same time, such as the stages of a pipeline: each takes its
            share of the sequences, and those that wait for their next token are in none.
    """

    def __init__(
        self,
        manager: CacheManager,
        *,
        max_batch_tokens: int,
        max_batch_sequences: int,
        keys_are_stale: Callable[[int, int], bool] | None = None,
        n_steps: int = 1,
    ) -> None:
        self._manager = manager
        self._max_tokens = max_batch_tokens
        self.max_sequences = min(max_batch_sequences, max_batch_tokens)
        """Most sequences that run at the same time."""
        self._keys_are_stale = keys_are_stale
        self._n_steps = n_steps
        self._waiting: list[SequenceState] = []
        self._running: list[SequenceState] = []
        self._by_id: dict[int, SequenceState] = {}

    @property
    def has_work(self) -> bool:
        """Whether a sequence runs or waits."""
        return bool(self._by_id)

    @property
    def running_ids(self) -> list[int]:
        """Ids of the sequences that have room in the cache."""
        return [sequence.id for sequence in self._running]

    def add(self, sequence_id: int, tokens: Sequence[int], *, parent_id: int | None = None, n_shared: int = 0) -> None:
        """Let a sequence wait, which continues `tokens`.

        Args:
            sequence_id: its number; those with lower ones come first.
            tokens: its first tokens.
            parent_id: another sample of the same prompt, which has been computed.
            n_shared: number of the first tokens that are those of the parent.
        """
        sequence = SequenceState(sequence_id, list(tokens), parent_id=parent_id, n_shared=n_shared)
        self._by_id[sequence_id] = sequence
        insort(self._waiting, sequence, key=_BY_ID)

    def append(self, sequence_id: int, token: int) -> None:
        """Add a token to a sequence, which is to be computed next."""
        sequence = self._by_id[sequence_id]
        sequence.tokens.append(token)
        sequence.awaits_token = False

    def remove(self, sequence_id: int, *, discard: bool = False) -> None:
        """End a sequence, running or waiting, if it is there; `discard`: nobody may use what was computed of it."""
        sequence = self._by_id.pop(sequence_id, None)
        if sequence is None:
            return
        if sequence in self._running:
            self._running.remove(sequence)
            if discard:
                self._manager.release(sequence)
            else:
                self._manager.finish(sequence, has_children=self._has_children(sequence_id))
        else:
            self._waiting.remove(sequence)

    def placement(self, sequence_id: int) -> Placement | None:
        """The room of a sequence that runs."""
        sequence = self._by_id[sequence_id]
        return self._manager.placement(sequence) if sequence in self._running else None

    def new_tokens(self, scheduled: ScheduledSequence) -> list[int]:
        """The tokens of a sequence that a step computes."""
        return self._by_id[scheduled.sequence_id].tokens[scheduled.n_cached : scheduled.n_cached + scheduled.n_new]

    def schedule(self) -> Step:
        """The next step; without sequences if none has work.

        All of its copies and its pass are to be made, and then `computed(step)` to be called. A sequence that it
        samples is in none of the following steps until `append` or `remove` is called for it.
        """
        copies: list[CacheCopy] = []
        planned: dict[SequenceState, int] = {}
        if self._continue_running(planned, copies):
            self._admit_waiting(planned, copies)
        sequences = tuple(
            ScheduledSequence(
                sequence.id, sequence.n_cached, n_new, self._manager.placement(sequence), n_new == sequence.n_uncached
            )
            for sequence, n_new in planned.items()
        )
        for scheduled in sequences:
            self._by_id[scheduled.sequence_id].awaits_token = scheduled.samples
        return Step(sequences, tuple(copies), self._manager.n_rows)

    def computed(self, step: Step) -> None:
        """Note that the tokens of a step are in the cache."""
        for scheduled in step.sequences:
            sequence = self._by_id[scheduled.sequence_id]
            sequence.n_cached = scheduled.n_cached + scheduled.n_new
            self._manager.computed(sequence)

    def preempt_all(self) -> None:
        """Let all running sequences wait for their turn to be computed from their first token."""
        for sequence in [*self._running]:
            self._preempt(sequence)

    def forget_cache(self) -> None:
        """Let no sequence use what was computed before, because the weights have changed; no step is in flight."""
        self.preempt_all()
        self._manager.forget()
        for sequence in self._waiting:
            sequence.awaits_token = False

    # ------------------------------------------------------------------ private helpers

    def _continue_running(self, planned: dict[SequenceState, int], copies: list[CacheCopy]) -> bool:
        """Plan the running sequences; returns whether all of them have kept their room."""
        budget, n_running = self._max_tokens, len(self._running)
        share = self._share(n_running)
        decoding = [sequence for sequence in self._running if sequence.n_uncached == 1]
        prefilling = [sequence for sequence in self._running if sequence.n_uncached > 1]
        for sequence in chain(decoding, prefilling):
            if budget <= 0 or len(planned) >= share:
                break
            if self._make_room(sequence, planned, copies):
                planned[sequence] = self._n_new(sequence, budget)
                budget -= planned[sequence]
        return len(self._running) == n_running

    def _admit_waiting(self, planned: dict[SequenceState, int], copies: list[CacheCopy]) -> None:
        """Plan waiting sequences as long as there are tokens, places and room for them."""
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
            insort(self._running, sequence, key=_BY_ID)
            planned[sequence] = self._n_new(sequence, budget)
            budget -= planned[sequence]

    def _share(self, n_sequences: int) -> int:
        """How many of the sequences one step takes."""
        return -(-n_sequences // self._n_steps)

    def _n_new(self, sequence: SequenceState, budget: int) -> int:
        """Number of tokens of a sequence that the next pass computes; drops its cache if that has become useless."""
        n_tokens, stale = len(sequence.tokens), self._keys_are_stale
        if stale is not None and sequence.n_cached and stale(sequence.n_cached, n_tokens):
            sequence.n_cached = 0
            self._manager.computed(sequence)
        n_new = min(budget, sequence.n_uncached)
        if stale is not None and stale(sequence.n_cached + n_new, n_tokens):
            return sequence.n_uncached  # the frequencies of a part are not those of the whole
        return n_new

    def _make_room(self, sequence: SequenceState, planned: dict[SequenceState, int], copies: list[CacheCopy]) -> bool:
        """Give a running sequence room for all its tokens, if need be that of the newest; False: it has lost its own.

        Those that have come before it keep theirs: the oldest always gets on.
        """
        while sequence in self._running:
            moves = self._manager.grow(sequence, len(sequence.tokens))
            if moves is not None:
                copies += moves
                return True
            planned.pop(self._running[-1], None)
            self._preempt(self._running[-1])
        return False

    def _has_children(self, sequence_id: int) -> bool:
        """Whether other samples of its prompt wait; their numbers are the ones after its own."""
        following = bisect(self._waiting, sequence_id, key=_BY_ID)
        return following < len(self._waiting) and self._waiting[following].parent_id == sequence_id

    def _preempt(self, sequence: SequenceState) -> None:
        self._running.remove(sequence)
        self._manager.release(sequence)
        sequence.n_cached = 0
        insort(self._waiting, sequence, key=_BY_ID)
