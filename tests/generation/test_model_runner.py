"""Each step of a schedule gives the logits of the full forward pass over each sequence alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from reallm.generation import row_slabs
from reallm.generation.model_runner import ModelRunner
from reallm.generation.row_store import RowStore
from tests.helpers.attention_layers import (
    LatentAttention,
    RecurrentAttention,
    SilentAttention,
    StatelessAttention,
    model_of,
)
from tests.helpers.row_schedules import RowSchedule, random_lengths
from tests.helpers.variants import BASE, VARIANTS, build, next_logits

CAPACITIES = (4, 8, 16, 32)


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs of at most four rows, and calls so cheap that rows are seldom read without need."""
    monkeypatch.setattr(row_slabs, "SLAB_TOKENS", 16)
    monkeypatch.setattr(row_slabs, "CALL_BYTES", 64)


def random_texts(n, longest, seed):
    rng = random.Random(seed)
    return [[rng.randrange(50) for _ in range(rng.randint(1, longest))] for _ in range(n)]


def check(model, schedule, step, token_ids, runner):
    """The logits of a step, after comparing them with those of the full forward pass over each text."""
    logits = runner.run(step, token_ids)
    texts = [schedule.texts[sequence.sequence_id] for sequence in step.sequences]
    expected = torch.stack([next_logits(model, text.tokens[: text.n_cached]) for text in texts])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    return logits


def check_random_schedule(model, texts, seed):
    """Compute all texts in random steps, between which some give back their rows and end, and check each step."""
    schedule = RowSchedule(model.config, texts, CAPACITIES)
    runner, rng = ModelRunner(model, RowStore.of(model)), random.Random(seed)
    while any(text.n_cached < len(text.tokens) for text in schedule.texts):
        if lengths := random_lengths(schedule, rng, 9):
            check(model, schedule, *schedule.step(lengths), runner)
        if rng.random() < 0.1:
            schedule.leave(rng.randrange(len(texts)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_schedules_equal_the_full_forward_pass(small_slabs, variant):
    check_random_schedule(build(VARIANTS[variant]).double(), random_texts(9, 22, 0), seed=1)


@pytest.mark.parametrize("attention", [LatentAttention, RecurrentAttention, SilentAttention, StatelessAttention])
def test_random_schedules_of_layers_that_keep_something_else_or_nothing(small_slabs, attention):
    check_random_schedule(model_of(attention).double(), random_texts(6, 22, 4), seed=5)


@pytest.mark.parametrize("model", [build(BASE.replace(sliding_window=3)), model_of(RecurrentAttention)])
def test_samples_of_a_prompt_go_on_from_copies_of_its_row(small_slabs, model):
    model.double()
    prompt, ends = [7, 3, 9, 4, 4, 1, 2], random_texts(5, 12, 6)
    schedule = RowSchedule(model.config, [prompt], CAPACITIES)
    runner = ModelRunner(model, RowStore.of(model))
    check(model, schedule, *schedule.step({0: 7}), runner)
    for end in ends:
        schedule.fork(0, prompt + end)
    for position in range(12):
        going_on = {i: 1 for i, end in enumerate(ends, 1) if position < len(end)}
        if going_on:
            check(model, schedule, *schedule.step(going_on), runner)


@pytest.mark.parametrize("window", [None, 100])
def test_lengths_around_the_capacity_of_a_row(window):
    model = build(BASE.replace(n_layers=1, sliding_window=window)).double()
    schedule = RowSchedule(model.config, random_texts(1, 1, 3) + [list(range(50)) * 6] * 4, (256, 512))
    runner = ModelRunner(model, RowStore.of(model))
    for lengths in ({1: 255, 2: 256, 3: 257, 4: 40}, {0: 1, 1: 1, 2: 1, 3: 1, 4: 215}, {4: 2, 2: 1, 1: 1}, {1: 1}):
        check(model, schedule, *schedule.step(lengths), runner)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_half_precision(softcap):
    model = build(BASE.replace(attn_softcap=softcap, sliding_window=(None, 5), init_std=0.1)).to(torch.bfloat16)
    schedule = RowSchedule(model.config, random_texts(5, 22, 0), CAPACITIES)
    runner, rng = ModelRunner(model, RowStore.of(model)), random.Random(1)
    for _ in range(12):
        step, token_ids = schedule.step(random_lengths(schedule, rng, 9) or {0: 1})
        logits = runner.run(step, token_ids)
        for text, found in zip([schedule.texts[each.sequence_id] for each in step.sequences], logits, strict=True):
            torch.testing.assert_close(found, next_logits(model, text.tokens[: text.n_cached]), rtol=0.05, atol=0.05)


def test_logits_are_those_of_the_sequences_that_sample_in_their_order():
    model = build(BASE)
    schedule = RowSchedule(model.config, [[1], [2, 3], [4, 5, 6]], (8,))
    runner = ModelRunner(model, RowStore.of(model))
    step, token_ids = schedule.step({2: 3, 0: 1, 1: 2})
    all_logits = runner.run(step, token_ids)
    middle = replace(step.sequences[1], samples=False)
    step = replace(step, sequences=(step.sequences[0], middle, step.sequences[2]))
    torch.testing.assert_close(runner.run(step, token_ids), all_logits[[0, 2]])
