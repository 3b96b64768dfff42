"""Pages: shared where sequences begin alike, copied where one is not full, and found until they are needed."""

from __future__ import annotations

from reallm.generation.page_manager import PageManager
from reallm.generation.sequence import SequenceState
from reallm.generation.step import CacheCopy, Pages


def place(manager: PageManager, number: int, tokens: list[int], **parent: int) -> tuple[SequenceState, int]:
    """A sequence that has pages and is computed, and the number of its tokens that were there before."""
    sequence = SequenceState(number, tokens, **parent)
    allocation = manager.allocate(sequence)
    assert allocation is not None
    sequence.n_cached = len(tokens)
    manager.computed(sequence)
    return sequence, allocation.n_cached


def test_pages_are_given_as_they_are_needed():
    manager = PageManager(20, page_size=4)
    sequence, _ = place(manager, 0, [1] * 8)
    assert manager.placement(sequence) == Pages((0, 1))
    assert manager.grow(sequence) == []
    sequence.tokens.append(2)
    assert manager.grow(sequence) == []
    assert manager.placement(sequence) == Pages((0, 1, 2))
    assert manager.allocate(SequenceState(1, [3] * 9)) is None
    assert manager.n_free_tokens == 8


def test_sequences_that_begin_alike_have_the_same_pages():
    manager = PageManager(64, page_size=4)
    first, _ = place(manager, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second, n_cached = place(manager, 1, [1, 2, 3, 4, 5, 6, 7, 8, 0])
    assert n_cached == 8
    assert manager.placement(second) == Pages((0, 1, 3))
    manager.finish(first)
    assert manager.n_free_tokens == 64 - 12
    _, n_cached = place(manager, 2, [1, 2, 3, 4, 9, 9, 9, 9])
    assert n_cached == 4


def test_samples_of_a_prompt_share_its_full_pages_and_have_copies_of_the_last_one():
    manager = PageManager(64, page_size=4, prefix_sharing=False)
    place(manager, 0, [1, 2, 3, 4, 5])
    child = SequenceState(1, [1, 2, 3, 4, 5, 6], parent_id=0, n_shared=5)
    assert manager.allocate(child) == (5, [CacheCopy(Pages((0, 1)), Pages((0, 2)), 5)])
    assert manager.allocate(SequenceState(2, [1, 2, 3, 4, 5])) == (0, [])  # without a parent nothing is shared


def test_pages_that_nobody_has_are_found_until_they_are_needed_the_end_of_a_prompt_first():
    manager = PageManager(16, page_size=4)
    sequence, _ = place(manager, 0, [1] * 12)
    manager.finish(sequence)
    assert manager.n_free_tokens == 16
    other, n_cached = place(manager, 1, [2] * 8)  # the empty page, and that of the third block
    assert n_cached == 0
    manager.finish(other)
    assert place(manager, 2, [1] * 12)[1] == 8


def test_tokens_that_nobody_may_use_are_not_found_and_what_others_have_too_is_not_returned():
    manager = PageManager(64, page_size=4)
    first, _ = place(manager, 0, [1] * 9)
    place(manager, 1, [1, 1, 1, 1, 2])
    assert manager.discard(first) == Pages((1, 2))
    assert place(manager, 2, [1] * 9)[1] == 0


def test_nothing_is_found_after_a_change_of_the_weights():
    manager = PageManager(64, page_size=4)
    manager.finish(place(manager, 0, [1] * 9)[0])
    manager.forget()
    assert place(manager, 1, [1] * 9)[1] == 0
    assert manager.n_free_tokens == 64 - 12
