"""Generation in every layout gives what one process gives, token for token."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError, NonFiniteError
from reallm.generation.config import GenerationConfig
from reallm.generation.data_parallel import make_engine
from reallm.generation.request import Completion, FinishedEvent, Request, TokenEvent
from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY
from tests.helpers.token_decoder import NumberDecoder

BASE = TINY.replace(n_layers=4, max_positions=16, init_std=0.3)
CONFIGS = {
    "grouped heads": BASE,  # fewer KV heads than ranks in tp4
    "tied head": BASE.replace(tied_embeddings=True, vocab_size=51),
    "experts and a window": BASE.replace(moe=MoEConfig(4, 2, 24), sliding_window=5),
    "rope that follows the length": BASE.replace(rope=RopeConfig("dynamic", factor=2.0), n_kv_heads=4),
}
LAYOUTS = [
    "tp2", "pp2", "dp2", "tp4", "pp4", "dp4", "tp2pp2", "dp2tp2", "dp2pp2", "fsdp2", "fsdp2pp2", "dp2@1,0", "pp2@2,0",
]  # fmt: skip
PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [7, 7], [1, 2, 3]]
GREEDY = GenerationConfig(max_new_tokens=7, temperature=0, kept_ids=True, top_logprobs=2)
SAMPLED = GenerationConfig(
    5, temperature=0.9, top_p=0.95, top_k=20, seed=3, n=3, model_logprobs=True, kept_mass=True, kept_ids=True
)
STOPPED = GenerationConfig(
    8, temperature=1.0, stop_token_ids=tuple(range(0, 50, 9)), stop=("<7>",), min_new_tokens=2, top_logprobs=1, seed=4
)
REQUESTS = [
    Request(tuple(prompt), config, key=f"request {index}")
    for index, prompt in enumerate(PROMPTS)
    for config in (GREEDY, SAMPLED, STOPPED)
] + [
    Request((5,), GenerationConfig(max_new_tokens=0)),
    Request((5,), GenerationConfig(max_new_tokens=1, temperature=2.0, kept_ids=True), key=9),
]
LONG = [
    Request(tuple((17 * index + place) % 50 for place in range(250)), GenerationConfig(10, seed=index), key=index)
    for index in range(4)
]
"""Requests that outgrow rows of 256 tokens."""


def made(config: ReaLModelConfig, mesh: Mesh | None) -> ReaLModel:
    """A model in float64, in which sums in another order lead to other tokens once in very many cases."""
    return ReaLModel(config, mesh=mesh, seed=3, dtype="float64").eval()


def n_ranks(layout: str) -> int:
    return max(Layout.parse(layout).ranks) + 1


def completed(model: ReaLModel, requests: list[Request], **options: int) -> list[Completion]:
    with make_engine(model.network, mesh=model.mesh, decoder=NumberDecoder(), **options) as engine:
        for request in requests:
            engine.add(request)
        return engine.run()


@cache
def by_one_process(name: str) -> list[Completion]:
    return completed(made(CONFIGS[name], None), REQUESTS)


def assert_same(got: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(got, expected, strict=True):
        one_fields, other_fields = vars(one), vars(other)
        for field, value in other_fields.items():
            if value and field in ("logprobs", "model_logprobs", "kept_mass"):
                assert one_fields[field] == pytest.approx(value, abs=1e-9), field
            elif field == "top_logprobs" and value is not None:
                for pairs, expected_pairs in zip(one_fields[field], value, strict=True):
                    assert [token for token, _ in pairs] == [token for token, _ in expected_pairs]
                    assert [p for _, p in pairs] == pytest.approx([p for _, p in expected_pairs], abs=1e-9)
            else:
                assert one_fields[field] == value, field


def generate_all(rank: int, layout: str) -> list[list[Completion]] | None:
    """What a rank has for each configuration, and for the first one once more; None outside of the layout."""
    mesh = Mesh.of(layout)
    if not mesh.is_member:
        return None
    models = [made(config, mesh) for config in CONFIGS.values()]
    return [completed(model, REQUESTS, max_batch_sequences=16) for model in [*models, models[0]]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_has_what_one_process_generates(layout):
    by_rank = on_ranks(n_ranks(layout), generate_all, layout)
    inside = [by_rank[rank] for rank in Layout.parse(layout).ranks]
    for results in inside:
        assert results == inside[0]
    *results, again = inside[0]
    for name, got in zip(CONFIGS, results, strict=True):
        assert_same(got, by_one_process(name))
    assert again == results[0]  # the same layout gives the same numbers, bit for bit


def test_the_requests_show_what_they_are_for():
    for name in CONFIGS:
        completions = by_one_process(name)
        greedy, sampled, stopped = (completions[start::5][:5] for start in (0, 1, 4))
        assert [each.token_ids[:5] for each in greedy] != [each.token_ids for each in sampled]
        assert {each.finish_reason for each in stopped} == {"stop", "length"}
        assert len({len(each.token_ids) for each in completions}) > 4


def generate_long(rank: int, layout: str) -> tuple[list[Completion], int]:
    """Completions where the cache has room for three rows, and the number of tokens that this rank has computed."""
    model = made(BASE, Mesh.of(layout) if layout else None)
    computed, inner = [], model.network.forward_hidden

    def forward_hidden(tokens, seqs, cache=None):
        computed.append(len(tokens))
        return inner(tokens, seqs, cache)

    model.network.forward_hidden = forward_hidden
    return completed(model, LONG, kv_cache_tokens=768, max_batch_tokens=100), sum(computed)


@pytest.mark.parametrize("layout", ["pp2", "dp2", "dp2tp2", "tp2pp2"])
def test_sequences_that_lose_their_room_are_computed_again(layout):
    expected, _ = generate_long(0, "")
    parsed = Layout.parse(layout)
    by_rank = on_ranks(parsed.size, generate_long, layout)
    for completions, _ in by_rank:
        assert_same(completions, expected)
    n_computed = sum(n for rank, (_, n) in enumerate(by_rank) if parsed.coordinate(rank)[1:] == (0, 0))
    assert n_computed > sum(len(each.prompt_ids) + len(each.token_ids) - 1 for each in expected)


def stream_and_cancel(rank: int, layout: str) -> tuple[list, list, list[Completion]]:
    """Events of a stream, events of an engine in which a request is cancelled twice, and what `generate` gives."""
    model = made(BASE, Mesh.of(layout) if layout else None)
    streamed = [*model.stream(PROMPTS, SAMPLED)]
    cancelled = []
    with model.generation_engine(max_batch_sequences=4) as engine:
        for index, prompt in enumerate(PROMPTS):
            engine.add(Request(tuple(prompt), SAMPLED, key=index))
        cancelled += engine.step()
        engine.cancel(0)
        engine.cancel(4)
        while engine.has_work:
            cancelled += engine.step()
        engine.cancel(0)
        assert engine.step() == []
    return streamed, cancelled, model.generate(PROMPTS, SAMPLED)


@pytest.mark.parametrize("layout", ["pp2", "dp2tp2", "fsdp2"])
def test_streams_and_cancelled_requests(layout):
    _, _, expected = stream_and_cancel(0, "")
    by_rank = on_ranks(n_ranks(layout), stream_and_cancel, layout)
    for events in by_rank:
        assert events == by_rank[0]
    streamed, cancelled, generated = by_rank[0]
    assert_same(generated, expected)
    assert_same(finished(streamed), expected)
    for completion, n in zip(expected, range(len(expected)), strict=True):
        tokens = [
            event.token_id
            for event in streamed
            if isinstance(event, TokenEvent) and (event.request_id, event.sample) == divmod(n, 3)
        ]
        assert tokens == completion.token_ids
    assert_same(finished(cancelled)[3:12], expected[3:12])
    for got, whole in zip(finished(cancelled), expected, strict=True):
        assert got.token_ids == whole.token_ids[: len(got.token_ids)]
    assert [each.finish_reason for each in finished(cancelled)] == ["cancelled"] * 3 + ["length"] * 9 + [
        "cancelled"
    ] * 3


def finished(events: list) -> list[Completion]:
    """The completions of events, by request, then by sample."""
    found = [event for event in events if isinstance(event, FinishedEvent)]
    return [event.completion for event in sorted(found, key=lambda event: (event.request_id, event.sample))]


def refused(rank: int, layout: str) -> list[str]:
    """What is said about a token that is not there, different prompts on each rank, and a weight that is not finite."""
    model = made(BASE, Mesh.of(layout))
    said = []
    for error, prompts in ((DataError, [[1], [50]]), (DataError, [[1], [rank]])):
        with pytest.raises(error) as caught:
            model.generate(prompts, GREEDY)
        said.append(str(caught.value))
        assert len(model.generate([[1]], GREEDY)) == 1  # nobody waits for anybody
    tensors = model.local_tensors()
    if "layers.0.tokens.weight" in tensors:
        tensors["layers.0.tokens.weight"][-1] = torch.nan  # token 49, or the last one of a rank's part
    with pytest.raises(NonFiniteError) as caught:
        model.generate([[1], [2], [49, 3]], GREEDY)
    return [*said, str(caught.value)]


@pytest.mark.parametrize("layout", ["dp2pp2", "tp2", "fsdp2"])
def test_errors_are_the_same_on_all_ranks(layout):
    by_rank = on_ranks(n_ranks(layout), refused, layout)
    for said in by_rank:
        assert said == by_rank[0]
    vocabulary, different, nonfinite = by_rank[0]
    assert vocabulary.startswith("prompt 1 has token 50, but the model has tokens 0 to 49")
    assert different.startswith("ranks 0 and ")
    assert "generate for different prompts or settings; all ranks of a layout must make the same calls" in different
    assert nonfinite.startswith("prompt 2: the logits of new token 1 are not finite; the parameter 'layers.0.tokens.w")
