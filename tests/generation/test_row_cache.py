"""How rows are divided into calls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reallm.generation.row_cache import segments


def divided(rows, lengths, call_cost):
    return [list(rows[each.start : each.stop]) for each in segments(rows, lengths, call_cost)]


def test_equal_lengths_in_adjacent_rows_are_one_call():
    assert divided(range(16), [70] * 16, 0) == [list(range(16))]


def test_rows_that_are_not_in_use_are_read_if_that_is_cheaper_than_a_call():
    assert divided([0, 1, 3, 9], [50] * 4, 100) == [[0, 1, 3], [9]]
    assert divided([0, 1, 3, 9], [50] * 4, 1000) == [[0, 1, 3, 9]]


def test_a_long_sequence_is_read_in_a_call_of_its_own():
    assert divided(range(5), [20, 20, 500, 20, 20], 100) == [[0, 1], [2], [3, 4]]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 300)), min_size=1, unique_by=lambda pair: pair[0]),
       st.integers(0, 400))  # fmt: skip
def test_all_rows_are_read_once_at_no_higher_cost_than_one_by_one(pairs, call_cost):
    rows, lengths = zip(*sorted(pairs), strict=True)
    ranges = segments(rows, lengths, call_cost)
    assert [i for each in ranges for i in each] == list(range(len(rows)))
    cost = sum(
        call_cost + (rows[each[-1]] - rows[each[0]] + 1) * max(lengths[each.start : each.stop]) for each in ranges
    )
    assert cost <= sum(length + call_cost for length in lengths)
