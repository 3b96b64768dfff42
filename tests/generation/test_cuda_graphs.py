"""Decoding steps over tensors that are filled before each pass, with plain functions in place of CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from reallm.generation.cuda_graphs import DecodeGraphs, can_be_captured
from reallm.generation.model_runner import ModelRunner
from reallm.model.config import MoEConfig, RopeConfig
from reallm.model.transformer import Transformer
from tests.helpers.page_schedules import PageSchedule, small_store
from tests.helpers.variants import BASE, build, next_logits

TEXTS = [[i * 7 % 50, i, 3, 4, 5 + i, 6, 7, 8, 9, 10, 11, 12] for i in range(7)]


def compute_again(compute):
    """In place of a CUDA graph: a function that computes into the same tensor."""
    result = compute()
    return lambda: result.copy_(compute()), result


def decode(model, graphs, schedule, indices):
    """Decode one token of some texts by the graphs; checks the logits, and that other pages are as before."""
    step, token_ids = schedule.step(dict.fromkeys(indices, 1))
    assert graphs.fit(step.sequences)
    logits = graphs.run(step.sequences, [token for tokens in token_ids for token in tokens])
    expected = [next_logits(model, schedule.texts[i].tokens[: schedule.texts[i].n_cached]) for i in indices]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.fixture
def decoding():
    """A model, its graphs, and a schedule whose prompts are computed."""
    model = build(BASE.replace(sliding_window=(None, 6))).double()
    store, schedule = small_store(model, 20), PageSchedule(TEXTS, n_pages=20, page_size=4)
    ModelRunner(model, store).run(*schedule.step({0: 3, 1: 4, 2: 5, 3: 1, 4: 2, 5: 3, 6: 3}))
    with torch.no_grad():
        yield model, DecodeGraphs(model, store, compute_again), schedule


def test_steps_are_filled_up_to_a_power_of_two(decoding):
    model, graphs, schedule = decoding
    for indices, n_captured in (([0, 1, 2], 1), ([3], 2), ([0, 3, 1, 2], 2), ([6, 5, 4, 0, 1], 3), ([2, 3], 4)):
        decode(model, graphs, schedule, indices)
        assert graphs.n_captured == n_captured
    graphs.clear()
    assert graphs.n_captured == 0
    decode(model, graphs, schedule, [0, 1])


def test_weights_that_are_updated_in_place_need_no_new_capture(decoding):
    model, graphs, schedule = decoding
    decode(model, graphs, schedule, [0, 1])
    before = graphs._graphs[2]
    model.layers["3"].out.weight.mul_(1.5)  # the head alone: what is cached stays right
    decode(model, graphs, schedule, [0, 1])
    assert graphs._graphs[2] is before
    model.layers["3"].out.weight.data = model.layers["3"].out.weight.clone()
    decode(model, graphs, schedule, [0, 1])
    assert graphs._graphs[2] is not before


def test_a_step_with_a_prompt_or_too_long_a_sequence_is_not_replayed(decoding):
    _, graphs, schedule = decoding
    step, _ = schedule.step({0: 1, 1: 2})
    assert not graphs.fit(step.sequences)
    graphs._n_pages = 1
    step, _ = schedule.step({1: 1})
    assert not graphs.fit(step.sequences)


@pytest.mark.parametrize(
    "change",
    [
        {"moe": MoEConfig(4, 2, 24)},
        {"rope": RopeConfig("dynamic", factor=2.0)},
        {"mlp": "reallm.model.layers:PlainMLP"},
    ],
)
def test_what_waits_for_the_device_is_not_captured(change):
    assert can_be_captured(Transformer(BASE))
    assert not can_be_captured(Transformer(BASE.replace(**change)))
