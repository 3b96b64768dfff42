"""Requests to an engine: the same tokens in whatever company, each answered once, and room for others afterwards."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from reallm.errors import ConfigError, DataError
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.request import Completion, FinishedEvent, Request, TokenEvent
from reallm.model.config import RopeConfig
from tests.helpers.counted_tokens import CountedTokens
from tests.helpers.token_decoder import NumberDecoder
from tests.helpers.variants import BASE, build, next_logits

LONG = BASE.replace(max_positions=2048, init_std=0.2)
"""For sequences of several rows."""


def text(seed: int, n: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(50), k=n))


def greedy(n: int, **fields: object) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=n, temperature=0.0, stop_token_ids=(), **fields)


REQUESTS = [
    Request(text(1, 5), GenerationConfig(max_new_tokens=20, temperature=0.0, stop_token_ids=()), key="a"),
    Request(text(2, 255), GenerationConfig(max_new_tokens=6, temperature=1.0, seed=3, stop_token_ids=()), key="b"),
    Request(text(2, 256), GenerationConfig(max_new_tokens=5, top_k=5, n=3, stop_token_ids=()), key="c"),
    Request(text(2, 257), GenerationConfig(max_new_tokens=4, top_p=0.9, n=2, stop_token_ids=()), key=4),
    Request(text(3, 300) + text(4, 1), GenerationConfig(max_new_tokens=7, min_p=0.1, stop_token_ids=()), key="e"),
    Request(text(3, 300) + text(5, 9), GenerationConfig(max_new_tokens=9, temperature=0.7, stop_token_ids=()), key=6),
    Request(text(6, 1), GenerationConfig(max_new_tokens=40, temperature=1.0, stop_token_ids=tuple(range(9)), n=4)),
    Request(text(7, 30), GenerationConfig(8, min_new_tokens=5, temperature=1.0, stop_token_ids=tuple(range(30)))),
]
"""Of all kinds; some begin alike, and some outgrow a row."""


def serve(engine: GenerationEngine, requests: list[Request], *, every: int = 0) -> list[list[Completion]]:
    """The completions of each request, which come at once or one after each few steps."""
    by_number: dict[int, list[Completion]] = {}
    waiting = list(requests)
    n_steps = 0
    while waiting or engine.has_work:
        while waiting and (not every or n_steps % every == 0):
            by_number[engine.add(waiting.pop(0))] = []
            if every:
                break
        n_steps += 1
        for event in engine.step():
            if isinstance(event, FinishedEvent):
                by_number[event.request_id].append(event.completion)
    return [sorted(by_number[number], key=lambda each: each.sample) for number in sorted(by_number)]


def tokens_of(completions: list[list[Completion]]) -> list[list[list[int]]]:
    return [[each.token_ids for each in of_request] for of_request in completions]


@pytest.fixture(scope="module")
def network():
    return build(LONG).double()


@pytest.fixture(scope="module")
def alone(network):
    """The tokens of each request when nothing else is there."""
    found = []
    for request in REQUESTS:
        with GenerationEngine(network) as engine:
            found += tokens_of(serve(engine, [request]))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_sharing": False},
        {"max_batch_tokens": 7, "max_batch_sequences": 3},
        {"max_batch_sequences": 1},
        {"kv_cache_tokens": 1024},  # two that outgrow their rows of 256 do not fit beside others
        {"kv_cache_tokens": 1024, "prefix_sharing": False, "max_batch_tokens": 100},
    ],
)
@pytest.mark.parametrize("every", [0, 3])
def test_the_same_request_gives_the_same_tokens_in_whatever_company(network, alone, options, every):
    order = [*range(len(REQUESTS))]
    for seed in range(2):
        random.Random(seed).shuffle(order)
        with GenerationEngine(network, **options) as engine:
            together = tokens_of(serve(engine, [REQUESTS[index] for index in order], every=every))
            assert engine.load.n_sequences == 0
            assert engine.load.n_free_tokens == engine._manager.n_tokens
        assert together == [alone[index] for index in order]


def test_the_cases_show_what_they_are_for(network, alone):
    preempted = []
    with GenerationEngine(network, kv_cache_tokens=1024, prefix_sharing=False) as engine:
        suspend = engine._scheduler._suspend
        engine._scheduler._suspend = lambda sequence: (preempted.append(sequence.id), suspend(sequence))
        serve(engine, REQUESTS)
    assert preempted
    lengths = {len(tokens) for of_request in alone for tokens in of_request}
    assert len(lengths) > 6  # some end with a stop token


def test_samples_of_a_request_can_be_asked_for_in_several_requests(network, alone):
    whole = REQUESTS[2]
    parts = [replace(whole, config=replace(whole.config, n=n), first_sample=first) for first, n in ((0, 1), (1, 2))]
    with GenerationEngine(network) as engine:
        found = serve(engine, parts)
    assert [each.sample for of_part in found for each in of_part] == [0, 1, 2]
    assert [tokens for of_part in tokens_of(found) for tokens in of_part] == alone[2]


def test_samples_of_a_prompt_compute_it_once():
    counted = CountedTokens(model := build(LONG))
    with GenerationEngine(model, prefix_sharing=False) as engine:
        engine.add(Request(text(1, 300), GenerationConfig(max_new_tokens=3, n=8, stop_token_ids=())))
        engine.run()
    assert counted.of_passes == [300, 8, 8]


def test_a_prompt_that_was_computed_before_is_not_computed_again():
    counted = CountedTokens(model := build(LONG))
    with GenerationEngine(model) as engine:
        first = serve(engine, [Request(text(1, 600), greedy(3))])
        assert counted.take() == 600 + 2
        again = serve(engine, [Request(text(1, 600), greedy(3)), Request((*text(1, 520), 1), greedy(1))])
        assert counted.take() == (1 + 2) + 1
    assert tokens_of(again)[0] == tokens_of(first)[0]


def test_a_conversation_goes_on_where_it_was():
    counted = CountedTokens(model := build(LONG))
    with GenerationEngine(model) as engine:
        [[answer]] = serve(engine, [Request(text(1, 300), greedy(4))])
        counted.take()
        prompt = (*text(1, 300), *answer.token_ids, *text(2, 10))
        [[found]] = serve(engine, [Request(prompt, greedy(2))])
        assert counted.take() == 1 + 10 + 1  # the last token of the answer was never an input
    assert found.token_ids[0] == int(next_logits(model, prompt).argmax())


@pytest.mark.parametrize("n_prompt", [255, 256, 257, 511, 512, 513])
@pytest.mark.parametrize("variant", ["plain", "window", "soft cap", "dynamic rope", "long rope"])
def test_greedy_tokens_around_the_bounds_of_rows_are_those_of_the_full_forward_pass(variant, n_prompt):
    config = {
        "plain": LONG,
        "window": LONG.replace(sliding_window=200),
        "soft cap": LONG.replace(attn_softcap=2.0),
        "dynamic rope": LONG.replace(rope=RopeConfig("dynamic", factor=2.0), max_positions=n_prompt + 1),
        "long rope": LONG.replace(
            rope=RopeConfig("longrope", original_max_positions=512, short_factor=(1.0,) * 4, long_factor=(4.0,) * 4)
        ),
    }[variant]
    model = build(config).double()
    prompt = text(n_prompt, n_prompt)
    with GenerationEngine(model, max_batch_tokens=100) as engine:
        [[completion]] = serve(engine, [Request(prompt, greedy(4))])
    known = [*prompt]
    for token in completion.token_ids:
        assert token == int(next_logits(model, known).argmax())
        known.append(token)


def test_a_request_for_no_tokens_computes_nothing():
    counted = CountedTokens(model := build(BASE))
    with GenerationEngine(model, decoder=NumberDecoder()) as engine:
        engine.add(Request((1, 2), GenerationConfig(max_new_tokens=0, n=2)))
        assert engine.has_work
        found = engine.run()
    assert [(each.token_ids, each.finish_reason, each.text, each.sample) for each in found] == [
        ([], "length", "", 0),
        ([], "length", "", 1),
    ]
    assert not counted.of_passes


def test_a_request_for_one_token_computes_its_prompt_only():
    counted = CountedTokens(model := build(BASE))
    with GenerationEngine(model) as engine:
        engine.add(Request((1, 2), GenerationConfig(max_new_tokens=1, n=3)))
        assert [len(each.token_ids) for each in engine.run()] == [1, 1, 1]
    assert counted.of_passes == [2]


def test_every_stop_token_stops_and_the_completion_says_which(network):
    with GenerationEngine(network) as engine:
        [[free]] = serve(engine, [Request((1, 2, 3), greedy(12))])
        first, second = free.token_ids[4], free.token_ids[7]
        for stop_token_ids in ((first,), (second,), (first, second), (second, first)):
            engine.default_stop_token_ids = stop_token_ids
            [[found]] = serve(engine, [Request((1, 2, 3), GenerationConfig(max_new_tokens=12))])
            end = min(free.token_ids.index(token) for token in stop_token_ids)
            assert found.token_ids == free.token_ids[: end + 1]
            assert (found.finish_reason, found.stop_token) == ("stop", free.token_ids[end])


def test_no_stop_token_comes_before_the_least_number_of_new_tokens(network):
    with GenerationEngine(network, default_stop_token_ids=range(40)) as engine:
        config = GenerationConfig(max_new_tokens=20, min_new_tokens=6, temperature=1.0, n=20)
        found = serve(engine, [Request((1, 2), config)])[0]
    assert all(token >= 40 for each in found for token in each.token_ids[:6])
    assert {each.finish_reason for each in found} == {"stop"}
    assert min(len(each.token_ids) for each in found) == 7


def test_events_are_the_tokens_and_the_ends(network):
    with GenerationEngine(network, decoder=NumberDecoder()) as engine:
        number = engine.add(Request((1, 2), GenerationConfig(max_new_tokens=5, temperature=1.0, n=2)))
        events = [event for _ in range(9) for event in engine.step()]
    for sample in (0, 1):
        tokens = [each for each in events if isinstance(each, TokenEvent) and each.sample == sample]
        [end] = [each for each in events if isinstance(each, FinishedEvent) and each.sample == sample]
        assert events.index(end) > events.index(tokens[-1])
        assert [each.token_id for each in tokens] == end.completion.token_ids
        assert [each.logprob for each in tokens] == end.completion.logprobs
        assert "".join(each.text for each in tokens) + end.text == end.completion.text
        assert {each.request_id for each in (*tokens, end)} == {number}


def test_a_request_is_cancelled_in_whatever_state_it_is(network):
    request = Request(text(1, 300), GenerationConfig(max_new_tokens=6, temperature=1.0, n=3, stop_token_ids=()))
    other = Request(text(2, 9), greedy(30))
    for n_steps in range(12):
        with GenerationEngine(network, max_batch_tokens=101, kv_cache_tokens=2048) as engine:
            engine.add(other)
            number = engine.add(request)
            events = [event for _ in range(n_steps) for event in engine.step()]
            engine.cancel(number)
            engine.cancel(number)  # it has ended
            while engine.has_work:
                events += engine.step()
            assert engine.load == (0, 0, 101, 2048)
        ends = [event for event in events if isinstance(event, FinishedEvent)]
        assert sorted((each.request_id, each.sample) for each in ends) == [(0, 0), (1, 0), (1, 1), (1, 2)]
        reasons = {each.completion.finish_reason for each in ends if each.request_id == number}
        assert reasons <= ({"cancelled"} if n_steps < 8 else {"cancelled", "length"})


def test_a_request_that_can_never_fit_is_refused_when_it_is_added(network):
    with GenerationEngine(network, kv_cache_tokens=1000) as engine:
        with pytest.raises(
            DataError,
            match=r"the prompt has 500 tokens, and with max_new_tokens=14 the cache must hold 513; with "
            r"kv_cache_tokens=1000 it holds at most 512 of a sequence; raise kv_cache_tokens, or lower max_new_tokens",
        ):
            engine.add(Request(text(1, 500), greedy(14)))
        assert not engine.has_work
        assert len(serve(engine, [Request(text(1, 500), greedy(13))])[0][0].token_ids) == 13


def test_limits_that_cannot_be_are_refused(network):
    for name in ("max_batch_tokens", "max_batch_sequences", "kv_cache_tokens"):
        with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
            GenerationEngine(network, **{name: 0})


def test_stop_strings_need_a_decoder(network):
    with GenerationEngine(network) as engine, pytest.raises(ConfigError, match="stop strings need a tokenizer"):
        engine.add(Request((1,), GenerationConfig(stop=("END",))))


def test_a_least_number_of_tokens_needs_one_that_is_no_stop_token(network):
    every = range(network.config.vocab_size)
    with GenerationEngine(network) as engine:
        with pytest.raises(ConfigError, match="the prompt: every token is in stop_token_ids, so there cannot be"):
            engine.add(Request((1,), GenerationConfig(3, min_new_tokens=1, stop_token_ids=(*every, 1000))))
        engine.add(Request((1,), GenerationConfig(3, min_new_tokens=3, stop_token_ids=tuple(every[:-1]))))
        [completion] = engine.run()
    assert completion.token_ids == [every[-1]] * 3
    assert completion.finish_reason == "length"


def test_an_error_in_a_step_leaves_an_engine_that_goes_on(network, alone, monkeypatch):
    with GenerationEngine(network) as engine:
        for request in REQUESTS[:4]:
            engine.add(request)
        finished = [event for _ in range(3) for event in engine.step()]
        with monkeypatch.context() as patch:
            patch.setattr(network, "head", lambda hidden: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        assert engine.has_work
        while engine.has_work:
            finished += engine.step()
    ends = [event for event in finished if isinstance(event, FinishedEvent)]
    found = {(each.request_id, each.sample): each.completion.token_ids for each in ends}
    assert found == {(number, sample): tokens for number in range(4) for sample, tokens in enumerate(alone[number])}


def test_a_sequence_whose_logits_are_not_finite_ends_alone():
    model = build(LONG)
    with torch.no_grad():
        model.layers["0"].tokens.weight[40] = float("nan")
    good = Request(tuple(token % 40 for token in text(1, 300)), greedy(30))
    bad = Request((7, 40), greedy(30))
    with GenerationEngine(model, default_stop_token_ids=()) as engine:
        [[alone]] = serve(engine, [good])
    with GenerationEngine(model) as engine:
        [[found], [failed]] = serve(engine, [good, bad])
        [[after]] = serve(engine, [Request((7, 8), greedy(5))])  # in the row that the bad one had
    assert found.token_ids == alone.token_ids
    assert not failed.is_finite
    assert len(failed.token_ids) == 1
    assert after.is_finite


def test_memory_is_given_back():
    with GenerationEngine(build(LONG)) as engine:
        engine.add(Request((1, 2), greedy(300)))
        for _ in range(3):
            engine.step()
        assert engine._store.bytes_held > 0
    assert engine._store.bytes_held == 0
    assert not engine.has_work
    assert engine.step() == []


# ------------------------------------------------------------------ weights that change


def test_what_was_computed_with_other_weights_is_not_used():
    counted = CountedTokens(model := build(LONG))
    with GenerationEngine(model) as engine:
        serve(engine, [Request(text(1, 600), greedy(2))])
        assert counted.take() == 601
        model.load_state_dict(build(LONG.replace(init_std=0.3)).state_dict())
        [[found]] = serve(engine, [Request(text(1, 600), greedy(2))])
        assert counted.take() == 601
    assert found.token_ids[0] == int(next_logits(model, text(1, 600)).argmax())


def test_a_change_in_the_middle_of_a_request_is_an_error_and_those_that_wait_go_on():
    model = build(LONG)
    with GenerationEngine(model, max_batch_sequences=1) as engine:
        engine.add(Request((1, 2, 3), greedy(9)))
        engine.add(Request((4, 5), greedy(2)))
        engine.step()
        with torch.no_grad():
            model.layers["1"].attn.q.weight.mul_(2)
        with pytest.raises(ConfigError, match="the weights have changed in the middle of 1 request, now cancelled; .*"):
            engine.step()
        first, second = engine.run()
    assert (first.finish_reason, len(first.token_ids)) == ("cancelled", 1)
    assert second.token_ids[0] == int(next_logits(model, [4, 5]).argmax())


def test_by_choice_a_request_goes_on_with_the_new_weights():
    model = build(LONG)
    with GenerationEngine(model, recompute_after_update=True) as engine:
        engine.add(Request((1, 2, 3), greedy(6)))
        for _ in range(3):
            engine.step()
        with torch.no_grad():
            model.layers["1"].attn.v.weight.mul_(-2)
        [completion] = engine.run()
    for n in range(3, 6):
        known = [1, 2, 3, *completion.token_ids[:n]]
        assert completion.token_ids[n] == int(next_logits(model, known).argmax())
