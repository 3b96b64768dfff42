"""Rows: the lowest free one first, moves to larger ones, beginnings that are copied, and what gives way when."""

from __future__ import annotations

from reallm.generation.prefix_index import BLOCK_SIZE
from reallm.generation.row_manager import RowManager
from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Row


def compute(manager: RowManager, sequence: SequenceState) -> None:
    """Compute all tokens of a sequence."""
    sequence.n_cached = len(sequence.tokens)
    manager.computed(sequence)


def place(manager: RowManager, number: int, tokens: list[int]) -> SequenceState:
    """A sequence that has a row and is computed."""
    sequence = SequenceState(number, tokens)
    allocation = manager.allocate(sequence)
    assert allocation is not None
    compute(manager, sequence)
    return sequence


def test_capacities_are_those_that_attention_is_grouped_by():
    manager = RowManager(10**6)
    capacities = [manager.placement(place(manager, n, [n] * n)).capacity for n in (1, 256, 257, 512, 513, 8193)]
    assert capacities == [256, 256, 512, 512, 1024, 16384]
    assert BLOCK_SIZE == 256


def test_the_lowest_free_row_comes_first_and_rows_at_the_end_go():
    manager = RowManager(64, block_size=4)
    sequences = [place(manager, number, [number]) for number in range(4)]
    assert [manager.placement(each) for each in sequences] == [Row(4, index) for index in range(4)]
    manager.finish(sequences[1])
    assert manager.n_rows == {4: 4}
    manager.finish(sequences[3])
    assert manager.n_rows == {4: 3}
    assert manager.placement(place(manager, 4, [4])) == Row(4, 1)
    assert manager.placement(place(manager, 5, [5])) == Row(4, 3)


def test_a_sequence_that_outgrows_its_row_is_copied_to_one_of_twice_the_capacity():
    manager = RowManager(64, block_size=4)
    sequence = place(manager, 0, [1, 2, 3, 4])
    sequence.tokens.append(5)
    assert manager.grow(sequence) == [CacheCopy(Row(4, 0), Row(8, 0), 4)]
    assert manager.n_rows == {8: 1}
    assert manager.grow(sequence) == []


def test_without_room_nothing_changes():
    manager = RowManager(12, block_size=4)
    sequence, other = place(manager, 0, [1] * 4), place(manager, 1, [2] * 4)
    sequence.tokens.append(5)
    assert manager.grow(sequence) is None
    assert manager.allocate(SequenceState(2, [3] * 5)) is None
    assert manager.placement(sequence), manager.placement(other) == (Row(4, 0), Row(4, 1))
    assert manager.n_free_tokens == 4


def test_the_beginning_of_a_prompt_is_copied_from_a_running_or_a_finished_sequence():
    manager = RowManager(64, block_size=4)
    first = place(manager, 0, [1, 2, 3, 4, 5, 6, 7, 8])
    second = SequenceState(1, [1, 2, 3, 4, 5, 9, 9])
    assert manager.allocate(second) == (5, [CacheCopy(Row(8, 0), Row(8, 1), 5)])  # beyond the block, token by token
    manager.finish(first)
    third = SequenceState(2, [1, 2, 3, 4, 8])
    assert manager.allocate(third) == (4, [CacheCopy(Row(8, 0), Row(8, 2), 4)])
    assert manager.allocate(SequenceState(3, [1, 2, 3])) == (0, [])  # not a whole block
    assert manager.allocate(SequenceState(4, [1, 2, 3, 4])) == (0, [])  # the last token has to be computed


def test_a_conversation_goes_on_in_the_row_that_has_it():
    manager = RowManager(64, block_size=4)
    manager.finish(place(manager, 0, [1, 2, 3, 4, 5]))
    longer = SequenceState(1, [1, 2, 3, 4, 5, 6, 7, 8])
    assert manager.allocate(longer) == (5, [])
    assert manager.placement(longer) == Row(8, 0)
    assert manager.n_rows == {8: 1}


def test_finished_rows_give_way_the_least_recently_used_first():
    manager = RowManager(24, block_size=4)
    for sequence in [place(manager, number, [number] * 8) for number in range(3)]:
        manager.finish(sequence)
    assert manager.n_free_tokens == 24
    # the next one copies from the first, so that the second has not been used for the longest time
    assert manager.allocate(SequenceState(3, [0, 0, 0, 0, 7])) == (4, [CacheCopy(Row(8, 0), Row(8, 1), 4)])
    assert manager.allocate(SequenceState(4, [7] * 6)) == (0, [])
    assert manager.placement(SequenceState(4, [])) == Row(8, 2)
    assert manager.allocate(SequenceState(5, [0, 0, 0, 0, 0, 0, 0, 0])) == (7, [])


def test_finished_sequences_keep_no_more_room_than_running_ones_have_had():
    manager = RowManager(10**6, block_size=4)
    for number in range(100):
        manager.finish(place(manager, number, [number] * 5))
    assert manager.n_rows in ({8: 1}, {8: 2})


def test_a_row_is_found_in_pieces():
    manager = RowManager(16, block_size=4)
    sequences = [place(manager, number, [number]) for number in range(4)]
    manager.finish(sequences[0])
    manager.finish(sequences[2])
    large = SequenceState(4, [4] * 8)
    assert manager.allocate(large) == (0, [CacheCopy(Row(4, 3), Row(4, 0), 1)])
    assert manager.placement(sequences[3]) == Row(4, 0)
    assert manager.n_rows == {4: 2, 8: 1}


def test_tokens_that_nobody_may_use_are_not_found():
    manager = RowManager(64, block_size=4)
    assert manager.discard(place(manager, 0, [1, 2, 3, 4, 5])) == Row(8, 0)
    assert manager.allocate(SequenceState(1, [1, 2, 3, 4, 5])) == (0, [])


def test_a_state_of_a_whole_sequence_is_only_copied_as_it_is():
    manager = RowManager(64, per_token=False, block_size=4)
    parent = place(manager, 0, [1, 2, 3, 4, 5])
    child = SequenceState(1, [1, 2, 3, 4, 5, 6], parent_id=0, n_shared=5)
    assert manager.allocate(child) == (5, [CacheCopy(Row(8, 0), Row(8, 1), 5)])
    assert manager.allocate(SequenceState(2, [1, 2, 3, 4, 9])) == (0, [])
    parent.tokens.append(7)
    compute(manager, parent)
    assert manager.allocate(SequenceState(3, [1, 2, 3, 4, 5, 8], parent_id=0, n_shared=5)) == (0, [])


def test_a_conversation_goes_on_with_the_state_of_all_its_tokens_or_with_none():
    manager = RowManager(64, per_token=False, block_size=4)
    manager.finish(place(manager, 0, [1, 2, 3, 4, 5]))
    assert manager.allocate(SequenceState(1, [1, 2, 3, 4, 9, 9])) == (0, [])
    longer = SequenceState(2, [1, 2, 3, 4, 5, 6])
    assert manager.allocate(longer) == (5, [])
    assert manager.placement(longer) == Row(8, 0)
    manager.finish(place(manager, 3, [7, 7, 7]))  # shorter than a block, by which it would be found
    assert manager.allocate(SequenceState(4, [7, 7, 7, 7])) == (0, [])
