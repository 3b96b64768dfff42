"""Ranks that hold one copy of the network between them decide alike, and compute for several groups at a time."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ConfigError
from reallm.generation import engine as engine_module
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.generate import generate_tokens
from reallm.generation.request import Completion, Request
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.generation.test_distributed import BASE, PROMPTS, SAMPLED, assert_same, completed, made
from tests.helpers.ranks import on_ranks
from tests.helpers.token_decoder import NumberDecoder
from tests.training.train_cases import batch_of


def sizes_of_passes(rank: int, layout: str) -> list[int]:
    """How many sequences are in each forward pass of this rank, for seven prompts."""
    mesh = Mesh.of(layout)
    network = made(BASE, mesh).network
    sizes, inner = [], network.forward_hidden

    def forward_hidden(tokens, seqs, cache=None):
        sizes.append(len(seqs.lengths))
        return inner(tokens, seqs, cache)

    network.forward_hidden = forward_hidden
    generate_tokens(network, [[1, 2]] * 7, GenerationConfig(max_new_tokens=3), mesh=mesh)
    return sizes


def test_each_stage_computes_for_its_share_of_the_sequences_while_others_compute_for_the_rest():
    assert on_ranks(2, sizes_of_passes, "tp2") == [[7, 7, 7]] * 2
    assert on_ranks(2, sizes_of_passes, "pp2") == [[4, 3] * 3] * 2
    assert on_ranks(4, sizes_of_passes, "pp4") == [[2, 2, 2, 1] * 3] * 4


def with_own_logits(rank: int, layout: str) -> list[Completion]:
    """What is generated where ranks do not agree on the logits."""
    mesh = Mesh.of(layout)
    network = made(BASE, mesh).network
    inner, noise = network.head, torch.Generator().manual_seed(rank)
    network.head = lambda hidden: inner(hidden) + torch.randn(hidden.shape[0], 50, generator=noise)
    return generate_tokens(network, PROMPTS, SAMPLED, mesh=mesh)


@pytest.mark.parametrize("layout", ["tp2", "tp2pp2"])
def test_logits_that_differ_between_ranks_do_not_split_them(layout):
    by_rank = on_ranks(Layout.parse(layout).size, with_own_logits, layout)
    assert all(completions == by_rank[0] for completions in by_rank)


def room_where_one_rank_has_less(rank: int, layout: str) -> int:
    """Tokens of the longest sequence, where each rank finds room for another number of tokens."""
    mesh = Mesh.of(layout)
    engine_module.default_kv_cache_tokens = lambda network: 4096 >> rank
    with GenerationEngine(made(BASE, mesh).network, mesh=mesh) as engine:
        return engine.longest_sequence


def test_the_rank_with_the_least_memory_limits_all():
    assert on_ranks(2, room_where_one_rank_has_less, "pp2") == [2048] * 2
    assert on_ranks(4, room_where_one_rank_has_less, "dp2tp2") == [512] * 4


def trained_meanwhile(rank: int, layout: str) -> tuple[list[list[Completion]], str, list[str]]:
    """What an engine gives before and after a step that trains the last block, and a new engine after it.

    And the error if there is such a step in the middle of a request, and why its samples end.
    """
    model = made(BASE.replace(vocab_size=51), Mesh.of(layout))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("layers.4."))
    trainer = TrainEngine(model, OptimizerConfig(lr=0.3, schedule="constant", warmup_steps=0), 10, 64)
    request = Request(tuple(place % 50 for place in range(300)), SAMPLED)  # its first block stays in the cache
    with model.generation_engine(decoder=NumberDecoder()) as engine:
        engine.add(request)
        completions = [engine.run()]
        trainer.train_batch(batch_of((12, 3)), SFTInterface())
        engine.add(request)
        completions += [engine.run(), completed(model, [request])]
        engine.add(request)
        for _ in range(4):
            engine.step()
        trainer.train_batch(batch_of((12, 3)), SFTInterface())
        with pytest.raises(ConfigError) as caught:
            engine.run()
        ends = [each.finish_reason for each in engine.run()]
    return completions, str(caught.value), ends


@pytest.mark.parametrize("layout", ["pp2", "tp2", "dp2", "fsdp2"])
def test_all_ranks_notice_that_weights_have_changed(layout):
    by_rank = on_ranks(2, trained_meanwhile, layout)
    assert by_rank[0] == by_rank[1]
    (before, after, expected), error, ends = by_rank[0]
    assert before != after
    assert_same(after, expected)
    assert "the weights have changed in the middle of 1 request, now cancelled" in error
    assert ends == ["cancelled"] * 3
