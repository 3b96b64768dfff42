"""Pages: which token goes where, and what is attended to; computed on the CPU, with attention written out."""

from __future__ import annotations

import random

import pytest
import torch

from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.model_runner import ModelRunner
from reallm.generation.page_store import PageStore, slots_of
from reallm.generation.request import Request
from reallm.generation.step import Pages, ScheduledSequence, Step
from reallm.model.attention.kv_cache import CacheTensor
from reallm.model.sharding import Shard
from tests.helpers.page_schedules import PageSchedule, gather_and_attend, small_store
from tests.helpers.row_schedules import random_lengths
from tests.helpers.variants import BASE, build, next_logits

SPECS = {1: (CacheTensor((2, 4), shard=Shard(0)),) * 2}


def check(model, schedule, step, token_ids, runner):
    logits = runner.run(step, token_ids)
    texts = [schedule.texts[sequence.sequence_id] for sequence in step.sequences]
    expected = torch.stack([next_logits(model, text.tokens[: text.n_cached]) for text in texts])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_tokens_are_written_to_the_pages_of_their_sequence_in_order():
    sequence = ScheduledSequence(0, n_cached=254, n_new=4, placement=Pages((7, 2)), samples=True)
    assert slots_of(sequence, 256) == [7 * 256 + 254, 7 * 256 + 255, 2 * 256, 2 * 256 + 1]


@pytest.mark.parametrize("window", [None, 3])
def test_random_schedules_equal_the_full_forward_pass(window):
    model, rng = build(BASE.replace(sliding_window=window)).double(), random.Random(1)
    texts = [[rng.randrange(50) for _ in range(rng.randint(1, 22))] for _ in range(8)]
    schedule = PageSchedule(texts, n_pages=50, page_size=4)
    runner = ModelRunner(model, small_store(model, 50))
    while any(text.n_cached < len(text.tokens) for text in schedule.texts):
        if lengths := random_lengths(schedule, rng, 9):
            check(model, schedule, *schedule.step(lengths), runner)
        if rng.random() < 0.1:
            schedule.leave(rng.randrange(8))


def test_samples_of_a_prompt_read_its_full_pages_and_copy_the_last():
    model = build(BASE).double()
    prompt = [7, 3, 9, 4, 4, 1]
    schedule = PageSchedule([prompt], n_pages=12, page_size=4)
    runner = ModelRunner(model, small_store(model, 12))
    check(model, schedule, *schedule.step({0: 6}), runner)
    for last in range(3):
        schedule.fork(0, [*prompt, last, last + 1, last + 2])
    assert len({tuple(text.pages[:1]) for text in schedule.texts}) == 1
    assert len({tuple(text.pages) for text in schedule.texts}) == 4
    for _ in range(3):
        check(model, schedule, *schedule.step({1: 1, 2: 1, 3: 1}), runner)


@pytest.mark.parametrize("kv_cache_tokens", [60, 1000])
def test_completions_over_pages_are_those_over_rows(monkeypatch, kv_cache_tokens):
    model = build(BASE).double()
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 3], [4]]
    config = GenerationConfig(max_new_tokens=12, temperature=1.0, n=3, stop_token_ids=())

    def completions(**options):
        with GenerationEngine(model, **options) as engine:
            for key, prompt in enumerate([*prompts, *prompts]):
                engine.add(Request(tuple(prompt), config, key=key))
            return [completion.token_ids for completion in engine.run()]

    rows = completions()
    monkeypatch.setattr("reallm.generation.engine.make_store", lambda _, n, exact: small_store(model, n // 4))
    assert completions(kv_cache_tokens=kv_cache_tokens) == rows


@pytest.mark.parametrize("n", [255, 256, 257])
def test_lengths_around_the_size_of_a_page(n):
    model = build(BASE.replace(n_layers=1)).double()
    schedule = PageSchedule([[i % 50 for i in range(n + 2)]], n_pages=2, page_size=256)
    runner = ModelRunner(model, small_store(model, 2, page_size=256))
    for n_new in (n, 1, 1):
        check(model, schedule, *schedule.step({0: n_new}), runner)


def test_memory_is_allocated_at_the_first_step_and_given_back():
    store = PageStore(SPECS, 3, dtype=torch.float32, device="cpu", attend=gather_and_attend)
    assert store.bytes_held == 0
    store.prepare(Step(()))
    assert store.bytes_held == 2 * (3 + 1) * 256 * 2 * 4 * 4
    store.close()
    assert store.bytes_held == 0


def test_a_rank_keeps_its_own_heads():
    store = PageStore(SPECS, 3, tp=2, dtype=torch.float32, device="cpu")
    assert [tuple(tensor.shape) for tensor in store.pages[1]] == [(4, 256, 1, 4)] * 2


def test_pages_are_erased_after_numbers_that_are_not_finite():
    store = PageStore(SPECS, 3, dtype=torch.float32, device="cpu")
    for tensor in store.pages[1]:
        tensor.fill_(torch.nan)
    store.erase(Pages((2, 0)))
    assert all(tensor.isnan().flatten(1).any(1).tolist() == [False, True, False, True] for tensor in store.pages[1])
