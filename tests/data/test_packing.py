"""Plans for data-parallel ranks and micro-batches: complete, within the budget, balanced, always the same."""

import doctest
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reallm.data import packing
from reallm.data.packing import balanced_partition, micro_batches, parallel_micro_batches
from reallm.errors import DataError

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
any_lengths = st.lists(st.integers(0, 50) | st.integers(0, 4096), max_size=40)


def sums(lengths: list[int], parts: list[list[int]]) -> list[int]:
    return [sum(lengths[i] for i in part) for part in parts]


def test_the_examples_in_the_documentation_are_true() -> None:
    assert doctest.testmod(packing) == (0, 5)


@quick
@given(any_lengths, st.integers(1, 9))
def test_a_partition_has_every_sample_once_in_k_ordered_parts(lengths: list[int], k: int) -> None:
    parts = balanced_partition(lengths, k)
    assert len(parts) == k
    assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in parts)
    assert sum(map(bool, parts)) == min(k, len(lengths))
    assert parts == balanced_partition(lengths, k)


@quick
@given(any_lengths, st.integers(1, 9))
def test_no_single_move_makes_a_partition_more_even(lengths: list[int], k: int) -> None:
    parts = balanced_partition(lengths, k)
    totals = sums(lengths, parts)
    fullest = totals.index(max(totals))
    assert all(lengths[i] in (0, *range(max(totals) - min(totals), 4097)) for i in parts[fullest])


@quick
@given(st.lists(st.integers(0, 60), min_size=1, max_size=7), st.integers(1, 3))
def test_a_partition_is_near_the_best_there_is(lengths: list[int], k: int) -> None:
    best = sum(lengths)
    for assignment in itertools.product(range(k), repeat=len(lengths)):
        parts = [[i for i, part in enumerate(assignment) if part == wanted] for wanted in range(k)]
        best = min(best, max(sums(lengths, parts)))
    assert max(sums(lengths, balanced_partition(lengths, k))) <= best * (4 / 3 - 1 / (3 * k))  # Graham's bound


@quick
@given(any_lengths, st.integers(1, 5000))
def test_no_micro_batch_is_above_the_budget_but_a_lone_longer_sample(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(batch == sorted(batch) for batch in batches)
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= budget for batch in batches)
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)
    assert batches == micro_batches(lengths, budget)


def fewest(lengths: list[int], budget: int) -> int:
    """The fewest micro-batches there can be: by dynamic programming over all subsets, as bit masks."""
    totals = [sum(length for i, length in enumerate(lengths) if mask >> i & 1) for mask in range(2 ** len(lengths))]
    best = [0] * len(totals)
    for mask in range(1, len(totals)):
        parts = (part for part in range(1, mask + 1) if part & mask == part and totals[part] <= budget)
        best[mask] = 1 + min(best[mask ^ part] for part in parts)
    return best[-1]


@quick
@given(st.lists(st.integers(1, 20), max_size=6), st.integers(20, 40))
def test_micro_batches_are_at_most_one_more_than_the_fewest(lengths: list[int], budget: int) -> None:
    assert len(micro_batches(lengths, budget)) <= fewest(lengths, budget) + 1


@quick
@given(any_lengths, st.integers(1, 5000), st.integers(1, 5), st.integers(1, 4))
def test_ranks_have_as_many_micro_batches_with_nearly_as_many_tokens(
    lengths: list[int], budget: int, dp: int, at_least: int
) -> None:
    ranks = parallel_micro_batches(lengths, budget, dp, at_least=at_least)
    assert ranks == parallel_micro_batches(lengths, budget, dp, at_least=at_least)
    assert len(ranks) == dp
    (n,) = {len(batches) for batches in ranks}
    assert n >= min(at_least, -(-len(lengths) // dp))
    parts = [part for batches in ranks for part in batches]
    assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
    assert all(len(part) <= 1 or sum(lengths[i] for i in part) <= budget for part in parts)
    # what the ranks have differs by no more than one micro-batch
    totals = [sum(sums(lengths, batches)) for batches in ranks]
    assert max(totals) - min(totals) <= max(sums(lengths, parts), default=0)


@quick
@given(any_lengths, st.integers(1, 5000))
def test_a_single_rank_has_the_micro_batches_of_one_process(lengths: list[int], budget: int) -> None:
    assert parallel_micro_batches(lengths, budget, 1) == [micro_batches(lengths, budget)]


def test_micro_batches_at_the_same_place_are_alike() -> None:
    lengths = [length for length in range(10, 90) for _ in range(3)]
    ranks = parallel_micro_batches(lengths, 1000, 4)
    for turn in zip(*ranks, strict=True):
        totals = sums(lengths, list(turn))
        assert min(totals) > 0.98 * max(totals)
    assert parallel_micro_batches([3, 4, 5, 6], 100, 1, at_least=3) == [[[0, 1], [2], [3]]]
    assert parallel_micro_batches([3], 10, 3) == [[[0]], [[]], [[]]]
    assert parallel_micro_batches([], 10, 2, at_least=3) == [[], []]


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], 8, []),
        ([5], 8, [[0]]),
        ([9], 8, [[0]]),
        ([0, 0, 0], 8, [[0, 1, 2]]),
        ([9, 3, 9, 3], 8, [[0], [1, 3], [2]]),
        ([4, 4, 4, 4], 8, [[0, 2], [1, 3]]),
        ([8, 1, 1, 1, 1], 8, [[0], [1, 2, 3, 4]]),
        ([6, 6, 6], 10, [[0], [1], [2]]),
        ([1] * 9, 8, [[0, 2, 4, 6, 8], [1, 3, 5, 7]]),  # 5 and 4, not 8 and 1
    ],
)
def test_micro_batches_of_small_cases(lengths: list[int], budget: int, expected: list[list[int]]) -> None:
    assert micro_batches(lengths, budget) == expected


def test_micro_batches_are_even_where_equal_parts_do_not_fit() -> None:
    lengths = [45, 44, 43, 34, 33, 32, 22, 21, 20, 12]
    totals = sums(lengths, micro_batches(lengths, 100))
    assert len(totals) == 4
    assert max(totals) - min(totals) <= 25


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(DataError, match="k=0 must be at least 1"):
        balanced_partition([1], 0)
    with pytest.raises(DataError, match="max_tokens=0 must be at least 1"):
        micro_batches([1], 0)
    with pytest.raises(DataError, match="dp=0 must be at least 1"):
        parallel_micro_batches([1], 8, 0)
    with pytest.raises(DataError, match="sample 1 has a negative length, -3"):
        micro_batches([1, -3], 8)
