"""Generation by several ranks gives what one process gives, token for token."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens
from reallm.generation.request import Completion
from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig
from reallm.model.transformer import Transformer
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from tests.helpers.ranks import on_ranks
from tests.helpers.token_decoder import NumberDecoder

BASE = ReaLModelConfig(
    n_layers=4, hidden_size=32, n_q_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=48, vocab_size=50,
    max_positions=16, init_std=0.3,
)  # fmt: skip
CONFIGS = {
    "grouped heads": BASE,
    "tied head": BASE.replace(tied_embeddings=True, vocab_size=51),
    "as many KV heads": BASE.replace(n_kv_heads=4, qk_norm="whole"),
    "experts": BASE.replace(moe=MoEConfig(4, 2, 24), sliding_window=5),
    "rope that follows the length": BASE.replace(rope=RopeConfig("dynamic", factor=2.0)),
}
LAYOUTS = [
    "dp2", "tp2", "pp2", "pp3", "pp4", "tp2pp2", "dp2pp2", "dp2tp2", "tp4", "fsdp2", "fsdp2pp2", "dp2@1,0",
    "pp2@2,0",
]  # fmt: skip
PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [7, 7], [1, 2, 3], [49, 0, 48], [8]]
GREEDY = GenerationConfig(max_new_tokens=8, temperature=0)
SAMPLED = GenerationConfig(max_new_tokens=8, temperature=0.9, top_p=0.95, seed=3)
STOPPED = GenerationConfig(12, temperature=1.0, stop_token_ids=tuple(range(0, 50, 9)), stop=("<7>",), seed=4)
CASES = [
    (PROMPTS, GREEDY),
    (PROMPTS, SAMPLED),
    (PROMPTS, STOPPED),
    (PROMPTS[:1], SAMPLED),  # fewer prompts than ranks or stages
    ([], GREEDY),
]


def spread(config: ReaLModelConfig, mesh: Mesh | None) -> Transformer:
    return ReaLModel(config, mesh=mesh, seed=3).eval().network


def n_ranks(layout: str) -> int:
    return max(Layout.parse(layout).ranks) + 1


def config_for(name: str, n_stages: int) -> ReaLModelConfig:
    """A configuration with as many layers as the stages need, two or four."""
    return CONFIGS[name].replace(n_layers=2 if n_stages <= 2 else 4)


@cache
def by_one_process(name: str, n_stages: int) -> list[list[Completion]]:
    model = spread(config_for(name, n_stages), None)
    return [generate_tokens(model, prompts, sampling, decoder=NumberDecoder()) for prompts, sampling in CASES]


def generate_all(rank: int, layout: str) -> list[list[list[Completion]]] | None:
    """What a rank has for each configuration in each case, and once more in the second one; None outside."""
    mesh = Mesh.of(layout)
    if not mesh.is_member:
        return None
    results = []
    for name in CONFIGS:
        model = spread(config_for(name, Layout.parse(layout).pp), mesh)
        results.append(
            [
                generate_tokens(model, prompts, sampling, decoder=NumberDecoder(), mesh=mesh)
                for prompts, sampling in [*CASES, CASES[1]]
            ]
        )
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_has_what_one_process_generates(layout):
    by_rank = on_ranks(n_ranks(layout), generate_all, layout)
    inside = [by_rank[rank] for rank in Layout.parse(layout).ranks]
    for results in inside:
        assert results == inside[0]
    for name, (*results, again) in zip(CONFIGS, inside[0], strict=True):
        for got, expected in zip(results, by_one_process(name, Layout.parse(layout).pp), strict=True):
            assert_same(got, expected)
        assert again == results[1]  # the same layout gives the same numbers, bit for bit


def assert_same(got: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.prompt_ids == other.prompt_ids
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        # other sums of parts, other sizes of matrices: logits of about 10 differ in the last of their 24 bits
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


@pytest.mark.parametrize("n_stages", [1, 4])
def test_the_cases_show_what_they_are_for(n_stages):
    for name in CONFIGS:
        greedy, sampled, stopped, *_ = by_one_process(name, n_stages)
        assert [completion.token_ids for completion in greedy] != [completion.token_ids for completion in sampled]
        assert {completion.finish_reason for completion in stopped} == {"stop", "length"}
        assert len({len(completion.token_ids) for completion in stopped}) > 2


def most_at_once(rank: int, layout: str) -> list[int]:
    """How many texts are in each forward pass of this rank, for six prompts of a length."""
    mesh = Mesh.of(layout)
    model = spread(BASE, mesh)
    sizes = []

    def forward_hidden(tokens, seqs, cache=None, inner=model.forward_hidden):
        sizes.append(len(seqs.lengths))
        return inner(tokens, seqs, cache)

    model.forward_hidden = forward_hidden
    generate_tokens(model, [[1, 2]] * 6, GenerationConfig(max_new_tokens=2), mesh=mesh)
    return sizes


def test_prompts_are_dealt_out_over_ranks_and_go_through_stages_in_groups():
    assert on_ranks(2, most_at_once, "dp2") == [[3, 3]] * 2
    assert on_ranks(2, most_at_once, "pp2") == [[3, 3, 3, 3]] * 2  # both groups, then both again


def with_own_logits(rank: int, layout: str) -> list[list[int]]:
    """What is generated where the ranks of tensor parallelism do not agree on the logits."""
    mesh = Mesh.of(layout)
    model = spread(BASE, mesh)
    inner, noise = model.head, torch.Generator().manual_seed(rank)
    model.head = lambda hidden: inner(hidden) + torch.randn(hidden.shape[0], 50, generator=noise)
    return [completion.token_ids for completion in generate_tokens(model, PROMPTS, SAMPLED, mesh=mesh)]


@pytest.mark.parametrize("layout", ["tp2", "tp2pp2"])
def test_logits_that_differ_between_ranks_do_not_split_them(layout):
    by_rank = on_ranks(n_ranks(layout), with_own_logits, layout)
    assert all(tokens == by_rank[0] for tokens in by_rank)


def refused(rank: int, layout: str) -> str:
    mesh = Mesh.of(layout)
    model = spread(BASE, mesh)
    with pytest.raises(DataError) as caught:
        generate_tokens(model, [[1], [50]], GREEDY, mesh=mesh)
    generate_tokens(model, [[1]], GREEDY, mesh=mesh)  # nobody waits for anybody
    return str(caught.value)


def test_every_rank_refuses_prompts_alike_before_anything_is_computed():
    for message in on_ranks(4, refused, "dp2pp2"):
        assert message.startswith("prompt 1 has token 50, but the model has tokens 0 to 49")


def trained_between(rank: int, layout: str) -> tuple[bool, bool]:
    """Whether generation leaves split parameters as they were, and usable for training."""
    mesh = Mesh.of(layout)
    model = ReaLModel(BASE, mesh=mesh, seed=1, zero=3)
    before = {name: part.clone() for name, part in model.local_tensors().items()}
    generate_tokens(model.network, PROMPTS[:3], GREEDY, mesh=mesh)
    after = model.local_tensors()
    unchanged = all(after[name].shape == part.shape and after[name].equal(part) for name, part in before.items())
    model(torch.tensor([1, 2, 3]), torch.tensor([0, 3])).logsumexp(-1).sum().backward()
    return unchanged, all(parameter.grad is not None for parameter in model.parameters())


def test_parameters_that_fsdp_splits_are_split_again_afterwards():
    assert on_ranks(2, trained_between, "fsdp2") == [(True, True)] * 2
