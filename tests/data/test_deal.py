"""Micro-batches of inference for the ranks of a layout."""

from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.data.packing import inference_micro_batches

SIZES = st.lists(st.integers(1, 60), max_size=24)
COUNTS = st.integers(1, 4)


@settings(deadline=None)
@given(SIZES, COUNTS, COUNTS, st.none() | st.integers(1, 80))
def test_each_index_is_in_one_batch_and_there_are_enough_for_all_stages(sizes, dp, pp, max_tokens):
    ranks = inference_micro_batches(sizes, dp, pp, max_tokens)
    assert len(ranks) == dp
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(len(sizes)))
    for batches in ranks:
        n = sum(map(len, batches))
        assert all(batches)
        assert len(batches) >= min(pp, n)
        assert max_tokens is not None or len(batches) == min(pp, n)
        for batch in batches:
            assert max_tokens is None or len(batch) == 1 or sum(sizes[i] for i in batch) <= max_tokens


def test_ranks_and_batches_are_balanced():
    assert inference_micro_batches([8, 7, 6, 5, 4], dp=2, pp=2) == [[[0], [1]], [[2], [3, 4]]]
    assert inference_micro_batches([5, 5, 5], dp=4, pp=1) == [[[0]], [[1]], [[2]], []]
    assert inference_micro_batches([], dp=2, pp=3) == [[], []]
