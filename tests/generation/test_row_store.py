"""Rows come, go and move as steps say, and keep what was written to them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from reallm.generation.row_slabs import SLAB_TOKENS
from reallm.generation.row_store import RowStore
from reallm.generation.step import CacheCopy, Row, ScheduledSequence, Step
from reallm.model.attention.functional import AttentionSpec
from reallm.model.attention.kv_cache import CacheTensor
from reallm.model.sharding import Shard

SPECS = {1: (CacheTensor((2, 4)), CacheTensor((2, 4))), 2: (CacheTensor((3,)), CacheTensor((5,), per_token=False))}
BYTES_OF_TOKEN = 4 * (2 * 2 * 4 + 3)


def decode(*rows, copies=(), n_rows=None):
    """A step in which the sequences of some rows have their second token."""
    sequences = tuple(ScheduledSequence(i, 1, 1, row, samples=True) for i, row in enumerate(rows))
    return Step(sequences, tuple(copies), n_rows or {})


def numbered(store, row, start):
    """Write numbers from `start` to a row; returns what was written, by block."""
    written = {}
    for number, block in store.prepare(decode(row)).blocks.items():
        for tensor in block:
            tensor[0] = torch.arange(start, start + tensor[0].numel()).view_as(tensor[0])
        written[number] = [tensor[0].clone() for tensor in block]
    return written


def contents(store, row):
    return {number: [each[0] for each in block] for number, block in store.prepare(decode(row)).blocks.items()}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 33, 100])
def test_memory_is_less_than_twice_what_the_rows_take(n):
    store = RowStore(SPECS)
    store.prepare(decode(Row(256, n - 1)))
    needed = n * (256 * BYTES_OF_TOKEN + 4 * 5)
    assert needed <= store.bytes_held < 2 * needed


def test_a_long_sequence_beside_a_short_one_takes_less_than_twice_what_is_held():
    store = RowStore(SPECS)
    for total in range(300, 8192, 61):
        capacity = next(each for each in (256, 512, 1024, 2048, 4096, 8192) if each >= total)
        store.prepare(decode(Row(256, 0), Row(capacity, 0), n_rows={256: 1, capacity: 1}))
        assert store.bytes_held <= (256 + 2 * total) * BYTES_OF_TOKEN + 2 * 4 * 5


def test_rows_keep_their_contents_when_others_come_and_go():
    store = RowStore(SPECS)
    first, second = numbered(store, Row(256, 0), 0), numbered(store, Row(256, 1), 1000)
    full = store.bytes_held
    for n_rows in (3, 40, 5):
        store.prepare(decode(Row(256, 0), n_rows={256: n_rows}))
        torch.testing.assert_close(contents(store, Row(256, 0)), first, rtol=0, atol=0)
        torch.testing.assert_close(contents(store, Row(256, 1)), second, rtol=0, atol=0)
    store.prepare(decode(n_rows={256: 1}))
    assert store.bytes_held == full // 2
    torch.testing.assert_close(contents(store, Row(256, 0)), first, rtol=0, atol=0)
    store.prepare(decode(n_rows={512: 1}))
    assert [slab.capacity for slab in store._slabs] == [512]
    store.close()
    assert store.bytes_held == 0


def test_a_copy_takes_the_first_tokens_and_the_whole_state():
    store = RowStore(SPECS)
    old = numbered(store, Row(256, 1), 7)
    moved = store.prepare(decode(Row(512, 0), copies=[CacheCopy(Row(256, 1), Row(512, 0), 200)], n_rows={512: 1}))
    for number, tensors in old.items():
        for spec, before, (after,) in zip(SPECS[number], tensors, moved.blocks[number], strict=True):
            if spec.per_token:
                torch.testing.assert_close(after[..., :200, :], before[..., :200, :], rtol=0, atol=0)
                assert not after[..., 200:, :].any()
            else:
                torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [slab.capacity for slab in store._slabs] == [512]


def test_copies_are_made_in_their_order():
    store = RowStore(SPECS)
    old = numbered(store, Row(256, 0), 7)
    numbered(store, Row(256, 1), 5000)
    copies = [CacheCopy(Row(256, 0), Row(256, 2), 256), CacheCopy(Row(256, 1), Row(256, 0), 256)]
    store.prepare(decode(copies=[*copies, CacheCopy(Row(256, 2), Row(256, 1), 256)]))
    torch.testing.assert_close(contents(store, Row(256, 1)), old, rtol=0, atol=0)


def test_tensors_of_adjacent_rows_are_views_and_of_others_copies_that_are_written_back():
    store = RowStore(SPECS)
    for i in range(3):
        numbered(store, Row(256, i), 100 * i)
    views = store.prepare(decode(Row(256, 1), Row(256, 2))).blocks[2]
    assert views[0].untyped_storage().data_ptr() == store._slabs.locate(Row(256, 0)).slab.blocks[2][0].data_ptr()

    cache = store.prepare(decode(Row(256, 0), Row(256, 2), Row(512, 0)))
    latent, state = cache.blocks[2]
    assert latent.shape == (3, 512, 3)
    assert latent[1, 0].tolist() == [200, 201, 202]
    latent[:, 1], state[:] = -1.0, torch.arange(15.0).view(3, 5)
    cache.advance([1, 1, 1])
    for i, row in enumerate((Row(256, 0), Row(256, 2), Row(512, 0))):
        (latent, state) = contents(store, row)[2]
        assert latent[1].tolist() == [-1, -1, -1]
        assert state.tolist() == [5.0 * i + j for j in range(5)]


def test_states_are_read_and_written_wherever_the_rows_are():
    store = RowStore({2: SPECS[2]})
    for i in range(3):
        numbered(store, Row(256, i), 100 * i)
    begins = ScheduledSequence(9, 0, 2, Row(256, 2), samples=True)
    go_on = [ScheduledSequence(i, 4, 1, row, samples=True) for i, row in enumerate((Row(256, 0), Row(512, 0)))]
    block = store.prepare(Step((begins, *go_on))).blocks[2]
    (states,) = block.read_states()
    assert states.tolist() == [[0] * 5, [0, 1, 2, 3, 4], [0] * 5]  # zeros for a sequence that begins
    block.write_states(states + torch.tensor([[1.0], [2.0], [3.0]]))
    assert [contents(store, Row(256, i))[2][1][0].item() for i in range(3)] == [2, 100, 1]
    assert contents(store, Row(512, 0))[2][1].tolist() == [3] * 5
    block = store.prepare(decode(Row(256, 0), Row(256, 1))).blocks[2]
    (states,) = block.read_states()
    states += 1
    block.write_states(states)  # in place
    assert [contents(store, Row(256, i))[2][1][0].item() for i in range(3)] == [3, 101, 1]


def test_a_row_is_erased_after_numbers_that_are_not_finite():
    store = RowStore(SPECS)
    for block in store.prepare(decode(Row(256, 0), Row(256, 1))).blocks.values():
        for tensor in block:
            tensor.fill_(torch.nan)
    store.erase(Row(256, 0))
    assert not any(tensor.any() for tensors in contents(store, Row(256, 0)).values() for tensor in tensors)
    assert all(tensor.isnan().all() for tensors in contents(store, Row(256, 1)).values() for tensor in tensors)


def test_memory_is_given_back_at_once_even_after_a_step():
    store = RowStore({1: SPECS[1]})
    cache = store.prepare(decode(Row(256, 0), Row(256, 3)))
    q, k = torch.randn(2, 2, 4, 4).unbind()
    cache.blocks[1].attend(q, k[:, :2], k[:, :2], AttentionSpec(0.5, window=1))
    tensors = [weakref.ref(tensor) for slab in store._slabs for tensor in slab.tensors]
    gc.disable()
    try:
        del cache
        store.close()
        assert not any(tensor() is not None for tensor in tensors)
    finally:
        gc.enable()


@pytest.mark.parametrize(("tp", "n_heads"), [(1, 2), (2, 1), (4, 1)])
def test_a_rank_keeps_its_own_heads(tp, n_heads):
    store = RowStore({1: (CacheTensor((2, 4), shard=Shard(0)),) * 2}, tp=tp)
    assert [tuple(tensor.shape) for tensor in store.prepare(decode(Row(256, 0))).blocks[1]] == [
        (1, n_heads, 256, 4)
    ] * 2


def test_prefixes_cannot_be_shared_where_a_layer_keeps_one_state_per_sequence():
    assert not RowStore(SPECS).can_share_prefixes
    assert RowStore({1: SPECS[1]}).can_share_prefixes


def test_a_full_slab_of_long_rows_is_one_row():
    store = RowStore({1: SPECS[1]})
    store.prepare(decode(Row(4 * SLAB_TOKENS, 2)))
    assert [slab.n_rows for slab in store._slabs] == [1, 1, 1]
