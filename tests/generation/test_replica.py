"""Ranks that hold one copy of the network between them decide alike, and compute for several groups at a time."""

from __future__ import annotations

import pytest
import torch

from reallm.generation import engine as engine_module
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.generate import generate_tokens
from reallm.generation.request import Completion
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from tests.generation.test_distributed import BASE, PROMPTS, SAMPLED, made
from tests.helpers.ranks import on_ranks


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
