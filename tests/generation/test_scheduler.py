"""Random schedules against a model of the cache: nobody starves, and nothing is lost or shared by mistake."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

import pytest

from reallm.generation import prefix_index
from reallm.generation.cache_manager import CacheManager
from reallm.generation.page_manager import PageManager
from reallm.generation.row_manager import RowManager
from reallm.generation.scheduler import Scheduler
from reallm.generation.step import CacheCopy, Row
from tests.helpers.cache_model import CacheModel

BLOCK = 4
N_SCHEDULES = 800
"""For each manager and kind of hashes."""


Rotation = Callable[[int], int]
"""Number of tokens of a sequence -> how its keys are rotated."""


def dynamic_rope(longest: int) -> Rotation:
    """Keys depend on the length of sequences that have more than `longest` tokens."""
    return lambda n_tokens: n_tokens if n_tokens > longest else 0


def long_rope(longest: int) -> Rotation:
    """Keys of sequences that have more than `longest` tokens differ from those of shorter ones."""
    return lambda n_tokens: int(n_tokens > longest)


def plain_rope(longest: int) -> Rotation:
    """Keys do not depend on the length."""
    return lambda n_tokens: 0


class Simulation:
    """Requests that come, are cancelled and end at random; tokens are drawn from few, so that many begin alike."""

    def __init__(self, kind: str, seed: int) -> None:
        self.random = rng = random.Random(seed)
        self.rotation = rotation = rng.choice([plain_rope, plain_rope, dynamic_rope, long_rope])(rng.randint(3, 20))
        self.stale = None if rotation(1000) == 0 else lambda cached, n: cached > 0 and rotation(cached) != rotation(n)
        n_tokens = BLOCK * rng.randint(2, 40)
        shares = rng.random() < 0.75
        self.per_token = kind == "pages" or rng.random() < 0.7
        self.manager: CacheManager = (
            RowManager(
                n_tokens,
                prefix_sharing=shares,
                per_token=self.per_token,
                keys_are_stale=self.stale,
                block_size=BLOCK,
            )
            if kind == "rows"
            else PageManager(n_tokens, prefix_sharing=shares, keys_are_stale=self.stale, page_size=BLOCK)
        )
        self.max_tokens, self.max_sequences = rng.choice([1, 3, 8, 30]), rng.choice([1, 2, 5, 20])
        self.scheduler = Scheduler(
            self.manager,
            max_batch_tokens=self.max_tokens,
            max_batch_sequences=self.max_sequences,
            keys_are_stale=self.stale,
            n_steps=(n_steps := rng.choice([1, 1, 1, 2, 3])),
        )
        self.n_steps, self.in_flight = n_steps, deque[list[int]]()
        self.cache = CacheModel(self.manager, BLOCK, has_states=not self.per_token)
        self.n_sequences = 0
        self.tokens: dict[int, list[int]] = {}
        self.n_prompt: dict[int, int] = {}
        self.n_final: dict[int, int] = {}
        self.n_samples: dict[int, int] = {}
        self.answered: Counter[int] = Counter()
        self.n_idle = 0  # steps since the oldest sequence has got a token

    def add(self) -> None:
        """A request, whose prompt may begin like those of others."""
        longest = self.manager.longest_sequence
        n_prompt = self.random.randint(1, min(longest, 24))
        prompt = [1] * self.random.randint(0, n_prompt)
        prompt += [self.random.randint(1, 2) for _ in range(n_prompt - len(prompt))]
        first, n = self.n_sequences, self.random.choice([1, 1, 2, 4])
        self.n_sequences += n
        self.tokens[first], self.n_prompt[first], self.n_samples[first] = prompt, n_prompt, n
        self.n_final[first] = n_prompt + self.random.randint(1, max(1, min(longest + 1 - n_prompt, 16)))
        self.scheduler.add(first, prompt)

    def end(self, sequence_id: int, *, discard: bool = False) -> None:
        """A sequence ends or is cancelled; `discard`: it has computed something that nobody may use."""
        del self.tokens[sequence_id]
        self.answered[sequence_id] += 1
        if discard:
            place = self.scheduler.discard(sequence_id)
            if place is not None:
                self.cache.erase(place)
        else:
            self.scheduler.remove(sequence_id)

    def step(self) -> None:
        """Plan, check and compute a step, and let the sequences of the oldest step go on."""
        step = self.scheduler.schedule()
        assert step.sequences or self.in_flight, "a stall"
        assert step.sequences or not step.copies, "copies that nobody makes"
        assert sum(each.n_new for each in step.sequences) <= self.max_tokens or self.stale is not None
        assert len(step.sequences) <= self.max_sequences
        assert {each.sequence_id for each in step.sequences} <= self.tokens.keys()
        for each in step.sequences:
            assert self.scheduler.new_tokens(each) == self.tokens[each.sequence_id][each.n_cached :][: each.n_new]
        if step.sequences:
            self.cache.do(step, self.tokens, self.rotation)
        self.scheduler.computed(step)
        self.in_flight.append([each.sequence_id for each in step.sequences if each.samples])
        if not step.sequences or len(self.in_flight) == self.n_steps:
            sampled = [number for number in self.in_flight.popleft() if number in self.tokens]
            self.n_idle = 0 if min(self.tokens) in sampled else self.n_idle + 1
            assert self.n_idle < 300, "the oldest does not get on"
            for number in sampled:
                self.go_on(number)

    def go_on(self, first: int) -> None:
        """Append a token to each sample of a sequence."""
        n_samples, prompt = self.n_samples.pop(first, 1), self.tokens[first]
        for number in range(first, first + n_samples):
            token = self.random.randint(1, 2)
            self.n_prompt[number], self.n_final[number] = self.n_prompt[first], self.n_final[first]
            if number == first:
                self.tokens[first] = [*prompt, token]
                self.scheduler.append(first, token)
            else:
                self.tokens[number] = [*prompt, token]
                self.scheduler.add(number, self.tokens[number], parent_id=first, n_shared=len(prompt))
        for number in range(first, first + n_samples):
            if len(self.tokens[number]) >= self.n_final[number]:
                self.end(number, discard=number == first and self.random.random() < 0.1)

    def run(self) -> None:
        """Some requests, until all have ended."""
        n_requests = self.random.randint(1, 6)
        while n_requests or self.tokens:
            if n_requests and (not self.tokens or self.random.random() < 0.3):
                self.add()
                n_requests -= 1
            if self.random.random() < 0.03:
                victim = self.random.choice([*self.tokens])
                for number in range(victim, victim + self.n_samples.pop(victim, 1)):
                    self.answered[number] += number != victim
                self.end(victim)
            if self.random.random() < 0.01:
                self.in_flight.clear()
                self.scheduler.forget_cache()
                self.cache.rows.clear()
                self.cache.pages.clear()
            if self.tokens:
                self.step()
        assert not self.scheduler.has_work
        assert self.manager.n_free_tokens == self.manager.n_tokens
        assert self.answered == Counter(range(self.n_sequences))
        self.scheduler.forget_cache()
        assert not self.manager.n_rows


@pytest.mark.parametrize("hashes", ["good", "colliding"])
@pytest.mark.parametrize("kind", ["rows", "pages"])
def test_random_schedules(kind, hashes, monkeypatch):
    if hashes == "colliding":
        monkeypatch.setattr(prefix_index, "hash", lambda value: hash(value) % 3, raising=False)
    for seed in range(N_SCHEDULES):
        try:
            Simulation(kind, seed).run()
        except BaseException as error:
            error.add_note(f"{kind}, seed {seed}")
            raise


def make(n_tokens: int = 64, max_tokens: int = 100, max_sequences: int = 100) -> Scheduler:
    """A scheduler of rows."""
    manager = RowManager(n_tokens, block_size=BLOCK)
    return Scheduler(manager, max_batch_tokens=max_tokens, max_batch_sequences=max_sequences)


def advance(scheduler: Scheduler) -> dict[int, tuple[int, int]]:
    """Compute a step and append a token to each sequence that samples: number -> tokens cached before, new tokens."""
    step = scheduler.schedule()
    scheduler.computed(step)
    for each in step.sequences:
        if each.samples:
            scheduler.append(each.sequence_id, 9)
    return {each.sequence_id: (each.n_cached, each.n_new) for each in step.sequences}


def test_a_long_prompt_is_computed_in_parts_beside_sequences_that_decode():
    scheduler = make(max_tokens=6)
    scheduler.add(0, [1])
    assert advance(scheduler) == {0: (0, 1)}
    scheduler.add(1, [2] * 12)
    scheduler.add(2, [3])
    assert advance(scheduler) == {0: (1, 1), 1: (0, 5)}
    assert advance(scheduler) == {0: (2, 1), 1: (5, 5)}
    assert advance(scheduler) == {0: (3, 1), 1: (10, 2), 2: (0, 1)}
    assert advance(scheduler) == {0: (4, 1), 1: (12, 1), 2: (1, 1)}


def test_sequences_enter_in_the_order_of_their_numbers_when_others_leave():
    scheduler = make(max_sequences=2)
    for number in range(4):
        scheduler.add(number, [number])
    assert [*advance(scheduler)] == [0, 1]
    scheduler.remove(0)
    assert [*advance(scheduler)] == [1, 2]
    scheduler.remove(1)
    scheduler.remove(2)
    assert [*advance(scheduler)] == [3]


def test_the_last_row_takes_the_place_of_one_that_has_ended_if_no_sequence_waits_for_it():
    scheduler = make(max_sequences=4)
    for number in range(5):
        scheduler.add(number, [number])
    advance(scheduler)
    scheduler.remove(1)
    step = scheduler.schedule()
    assert {each.sequence_id: each.placement.index for each in step.sequences} == {0: 0, 2: 2, 3: 3, 4: 1}
    assert not step.copies
    scheduler.computed(step)

    scheduler.remove(0)
    scheduler.remove(4)
    for number in (2, 3):
        scheduler.append(number, 9)
    step = scheduler.schedule()
    assert {each.sequence_id: each.placement.index for each in step.sequences} == {2: 1, 3: 0}
    assert step.copies == (CacheCopy(Row(4, 3), Row(4, 0), 2), CacheCopy(Row(4, 2), Row(4, 1), 2))
    assert step.n_rows == {4: 2}


def test_the_newest_waits_when_there_is_no_room_and_is_computed_again():
    scheduler = make(n_tokens=12)
    for number in range(3):
        scheduler.add(number, [number])
    for cached in (0, 1, 2, 3):
        assert advance(scheduler) == dict.fromkeys(range(3), (cached, 1))
    # the first needs a row of 8 beside its old one of 4: both others make room
    assert advance(scheduler) == {0: (4, 1)}
    scheduler.remove(0)
    assert advance(scheduler) == {1: (0, 5)}
    scheduler.remove(1)
    assert advance(scheduler) == {2: (0, 5)}


def test_a_sequence_that_outgrows_its_row_alone_is_computed_again():
    scheduler = make(n_tokens=8)
    scheduler.add(0, [1] * 4)
    assert advance(scheduler) == {0: (0, 4)}
    assert advance(scheduler) == {0: (0, 5)}
    assert advance(scheduler) == {0: (5, 1)}


def test_samples_of_a_prompt_compute_it_once():
    scheduler = make()
    prompt = [1, 2, 3, 4, 5, 6]
    scheduler.add(0, prompt)
    assert advance(scheduler) == {0: (0, 6)}
    for number in (1, 2):
        scheduler.add(number, [*prompt, number], parent_id=0, n_shared=6)
    assert advance(scheduler) == {0: (6, 1), 1: (6, 1), 2: (6, 1)}


def test_of_prompts_that_begin_alike_and_come_together_one_computes_the_beginning():
    scheduler = make()
    scheduler.add(0, [1, 2, 3, 4, 5])
    scheduler.add(1, [1, 2, 3, 4, 6])
    scheduler.add(2, [7])
    assert advance(scheduler) == {0: (0, 5), 2: (0, 1)}
    assert advance(scheduler) == {0: (5, 1), 2: (1, 1), 1: (4, 1)}


def test_after_a_change_of_the_weights_all_is_computed_again():
    scheduler = make()
    scheduler.add(0, [1, 2, 3, 4, 5])
    advance(scheduler)
    scheduler.forget_cache()
    scheduler.add(1, [1, 2, 3, 4, 6])
    assert advance(scheduler) == {0: (0, 6)}
    assert advance(scheduler) == {0: (6, 1), 1: (4, 1)}
