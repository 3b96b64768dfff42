"""Times of pieces of a model from stated figures, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from reallm.model.config import MoEConfig
from reallm.planning.machine import Link, Machine
from reallm.planning.stated_rates import StatedRates
from tests.helpers.tiny_config import TINY

COMPUTES = Machine(
    "computes", 2, 4, memory=2**40, host_memory=2**40, flops=1e9, memory_bandwidth=1e18,
    within_node=Link(1e9, 1e-3), between_nodes=Link(1e8, 1e-2), host=Link(1e7, 0.0),
)  # fmt: skip
READS = Machine(
    "reads", 1, 1, memory=2**40, host_memory=2**40, flops=1e18, memory_bandwidth=1e9,
    within_node=Link(1e9, 0.0), between_nodes=Link(1e9, 0.0), host=Link(1e9, 0.0),
)  # fmt: skip
ATTENTION = 32 * 32 + 2 * 16 * 32 + 32 * 32
MLP = 3 * 32 * 48
FLOPS = StatedRates(COMPUTES, TINY, torch.float32)
BYTES = StatedRates(READS, TINY, torch.float32)


def test_products_and_attention_of_a_block():
    products, pairs = 2 * (ATTENTION + MLP) * 10, 10 * 11 / 2
    attention = 4 * pairs * 32 / 0.5  # four operations for each pair and dim, at half the speed of products
    assert FLOPS.forward("block", [10]) == pytest.approx((products + attention) / 1e9)
    assert FLOPS.backward("block", [10]) == pytest.approx((2 * products + 2.5 * attention) / 1e9)


def test_two_sequences_have_fewer_pairs_than_one_of_their_length():
    assert FLOPS.forward("block", [5, 5]) < FLOPS.forward("block", [10])


def test_a_window_bounds_pairs():
    windowed = StatedRates(COMPUTES, TINY.replace(sliding_window=(4, None)), torch.float32)
    pairs = (4 * 5 / 2 + 6 * 4 + 10 * 11 / 2) / 2
    expected = 2 * (ATTENTION + MLP) * 10 + 4 * pairs * 32 / 0.5
    assert windowed.forward("block", [10]) == pytest.approx(expected / 1e9)


def test_head_and_its_backward_pass_which_computes_logits_again():
    assert FLOPS.forward("head", [10]) == pytest.approx(2 * 50 * 32 * 10 / 1e9)
    assert FLOPS.backward("head", [10]) == pytest.approx(3 * FLOPS.forward("head", [10]))
    critic = StatedRates(COMPUTES, TINY.replace(is_critic=True), torch.float32)
    assert critic.forward("head", [10]) == pytest.approx(2 * 32 * 10 / 1e9)


def test_tensor_parallelism_divides_a_block():
    assert FLOPS.forward("block", [10], 2) == pytest.approx(FLOPS.forward("block", [10]) / 2)


def test_decoding_reads_weights_once_and_the_cache_of_each_sequence():
    alone, ten = (BYTES.decode("block", n, 100) for n in (1, 10))
    weights = 4 * (ATTENTION + MLP)
    between = 4 * (10 * 32 + 2 * 6 * 8 + 3 * 48)
    cache = 4 * 2 * 2 * 8 * 100
    assert alone == pytest.approx((weights + cache + between) / 1e9)
    assert ten == pytest.approx((weights + 10 * (cache + between)) / 1e9)


def test_only_chosen_experts_are_computed_and_read():
    config = TINY.replace(moe=MoEConfig(n_experts=8, top_k=2))
    computed = StatedRates(COMPUTES, config, torch.float32).forward("block", [1])
    router = 8 * 32
    assert computed == pytest.approx((2 * (ATTENTION + router + 2 * MLP) + 4 * 32 / 0.5) / 1e9)
    reads = StatedRates(READS, config, torch.float32)
    one, many = (reads.decode("block", n, 0) for n in (1, 1000))
    between = 4 * (10 * 32 + 2 * 6 * 8 + 3 * 2 * 48) / 1e9
    assert one == pytest.approx(4 * (ATTENTION + router + 2 * MLP) / 1e9 + between)
    assert many == pytest.approx(4 * (ATTENTION + router + 8 * MLP) / 1e9 + 1000 * between)


def test_optimizer_reads_gradients_twice_and_moves_state_and_weights():
    assert BYTES.optimizer(1000) == pytest.approx(1000 * (2 * 4 + 2 * 2 * 4 + 2 * 4) / 1e9)
    half = StatedRates(READS, TINY, torch.bfloat16)
    assert half.optimizer(1000) == pytest.approx(1000 * (2 * 4 + 2 * 2 * 4 + 2 * 4 + 2 * 2) / 1e9)


def test_all_reduce_is_a_ring_whose_nodes_share_their_links():
    assert FLOPS.all_reduce(10**6, [3]) == 0
    assert FLOPS.all_reduce(10**6, [0, 1, 2, 3]) == pytest.approx(2 * 3 / 4 * 1e6 / 1e9 + 4e-3)
    one_of_each_node, two_of_each = FLOPS.all_reduce(10**6, [0, 4]), FLOPS.all_reduce(10**6, [0, 1, 4, 5])
    assert one_of_each_node == pytest.approx(1e6 / 1e8 + 2e-2)
    assert two_of_each == pytest.approx(2 * 3 / 4 * 1e6 / 2e8 + 4e-2)


def test_messages_and_copies_to_host_memory():
    assert FLOPS.point_to_point(10**6, [0, 1]) == pytest.approx(2e-3)
    assert FLOPS.point_to_point(10**6, [0, 4]) == pytest.approx(2e-2)
    assert FLOPS.host_copy(10**6) == pytest.approx(0.1)
