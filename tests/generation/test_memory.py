"""The memory that keys and values of generated sequences may take."""

from __future__ import annotations

import pytest
import torch

from reallm.generation import memory
from reallm.generation.memory import (
    TOKENS_OF_UNKNOWN_MEMORY,
    bytes_per_sequence,
    bytes_per_token,
    default_kv_cache_tokens,
)
from reallm.generation.prefix_index import BLOCK_SIZE
from reallm.model.transformer import Transformer
from tests.helpers.attention_layers import LatentAttention, StatelessAttention, model_of
from tests.helpers.state_layers import WideState
from tests.helpers.tiny_config import TINY
from tests.helpers.variants import VARIANTS, build

JOB = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "localhost",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JOB:
        monkeypatch.delenv(name, raising=False)


def with_free_memory(monkeypatch: pytest.MonkeyPatch, n_bytes: int | None, *, prepacked: int = 0) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: n_bytes)
    monkeypatch.setattr(memory, "prepacked_bytes", lambda network: prepacked)


def network_of(device: str) -> Transformer:
    with torch.device(device):
        return Transformer(TINY)


@pytest.mark.parametrize("network", [*map(build, VARIANTS.values()), model_of(LatentAttention)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_a_token_are_those_by_which_the_cache_grows(network: Transformer, dtype: torch.dtype) -> None:
    network = network.to(dtype)

    def taken(capacity: int) -> int:
        specs = (each for spec in network.cache_specs().values() for each in spec)
        return sum(each.allocate(1, capacity, 1, dtype, torch.device("cpu")).nbytes for each in specs)

    assert 0 < bytes_per_token(network) == taken(8) - taken(7)


def test_a_rank_counts_its_own_heads_and_blocks() -> None:
    network = Transformer(TINY)
    one_block = 2 * 2 * 8 * 4  # keys and values of 2 heads with 8 numbers of 4 bytes
    assert bytes_per_token(network) == 2 * one_block
    network.tp_size = 2
    assert bytes_per_token(network) == 2 * one_block // 2
    assert bytes_per_token(Transformer(TINY, layers=range(2))) == one_block


def test_the_cache_has_half_of_what_prepacked_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("cpu")
    with_free_memory(monkeypatch, 5000 + 2 * 1000 * bytes_per_token(network), prepacked=5000)
    assert default_kv_cache_tokens(network) == 1000


@pytest.mark.parametrize("n_bytes", [0, 1, 4999])
def test_the_cache_has_room_for_one_block_however_little_is_free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    with_free_memory(monkeypatch, n_bytes, prepacked=5000)
    assert default_kv_cache_tokens(network_of("cpu")) == BLOCK_SIZE


def test_processes_on_a_machine_share_its_memory_but_not_that_of_accelerators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cpu, on_accelerator = network_of("cpu"), network_of("meta")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with_free_memory(monkeypatch, 2 * 4000 * bytes_per_token(on_cpu))
    assert default_kv_cache_tokens(on_cpu) == 1000
    assert default_kv_cache_tokens(on_accelerator) == 4000


def test_where_nobody_knows_the_free_memory_there_is_a_fixed_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, None)
    assert default_kv_cache_tokens(network_of("cpu")) == TOKENS_OF_UNKNOWN_MEMORY


def test_so_it_is_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 10**9)
    network = model_of(StatelessAttention)
    assert bytes_per_token(network) == bytes_per_sequence(network) == 0
    assert default_kv_cache_tokens(network) == TOKENS_OF_UNKNOWN_MEMORY


def test_states_take_the_memory_of_sequences_with_a_block_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Transformer(TINY.replace(attention=f"{WideState.__module__}:WideState"))
    assert (bytes_per_token(network), bytes_per_sequence(network)) == (0, 2 * 12 * 1000 * 4)
    with_free_memory(monkeypatch, 2 * 10 * bytes_per_sequence(network))
    assert default_kv_cache_tokens(network) // BLOCK_SIZE == 10
