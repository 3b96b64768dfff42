"""Sequences dealt out over a layout."""

from hypothesis import given
from hypothesis import strategies as st

from reallm.data.packing import deal
from reallm.parallel.layout import Layout

SIZES = st.lists(st.integers(1, 60), max_size=24)
COUNTS = st.integers(1, 4)


@given(SIZES, COUNTS, COUNTS, st.none() | st.integers(1, 80))
def test_each_index_is_dealt_once_in_full_groups_that_fill_the_stages(sizes, dp, pp, max_size):
    shares = deal(sizes, Layout(dp=dp, pp=pp), max_size)
    assert len(shares) == dp
    assert sorted(i for groups in shares for group in groups for i in group) == list(range(len(sizes)))
    for groups in shares:
        n = sum(map(len, groups))
        assert all(groups)
        assert len(groups) >= min(pp, n)
        assert max_size is not None or len(groups) == min(pp, n)
        for group in groups:
            assert max_size is None or len(group) == 1 or sum(sizes[i] for i in group) <= max_size


def test_ranks_and_groups_are_balanced():
    assert deal([8, 7, 6, 5, 4], Layout(dp=2, pp=2)) == [[[0], [1]], [[2], [3, 4]]]
    assert deal([5, 5, 5], Layout(dp=4)) == [[[0]], [[1]], [[2]], []]
    assert deal([], Layout(dp=2, pp=3)) == [[], []]
