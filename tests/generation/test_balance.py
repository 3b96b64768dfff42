"""Which rank takes which requests: all of them get something to do, and each sample is taken once, in order."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from reallm.generation.balance import MARGIN, Load, hand_out
from reallm.generation.config import GenerationConfig
from reallm.generation.request import Request

IDLE = Load(0, 0, 8, 1000)
FULL = Load(8, 1, 0, 1000)


def request(n: int = 1, n_prompt_tokens: int = 10) -> Request:
    return Request((1,) * n_prompt_tokens, GenerationConfig(n=n))


requests = st.lists(st.builds(request, st.integers(1, 20), st.integers(1, 300)), max_size=40)
loads = st.builds(
    lambda n_running, n_waiting, n_free, n_tokens: Load(n_running + n_waiting, n_waiting, n_free, n_tokens),
    st.integers(0, 50),
    st.integers(0, 10),
    st.integers(-20, 50),
    st.integers(-500, 5000),
)


@given(requests, st.lists(loads, min_size=1, max_size=9))
def test_each_sample_is_taken_once_and_in_order_and_nobody_who_has_room_is_left_out(waiting, ranks):
    pieces = hand_out(waiting, ranks)
    taken = [each for each, _ in groupby(piece.index for piece in pieces)]
    assert taken == [*range(len(taken))]
    for index, of_request in groupby(pieces, key=lambda piece: piece.index):
        following = 0
        for piece in of_request:
            assert piece.first_sample == following
            assert piece.n_samples > 0
            following += piece.n_samples
        assert following == waiting[index].config.n
    after = [Load(*load) for load in ranks]
    for piece in pieces:
        n, n_prompt = piece.n_samples, len(waiting[piece.index].prompt_ids)
        old = after[piece.rank]
        after[piece.rank] = Load(
            old.n_sequences + n, old.n_waiting + n, old.n_free_sequences - n, old.n_free_tokens - n * n_prompt
        )
    if len(taken) < len(waiting):  # those that are left would find no room
        for load in after:
            assert load.n_waiting * MARGIN > load.n_sequences
            assert load.n_free_sequences <= 0 or load.n_free_tokens <= 0
    if all(load.n_waiting * MARGIN > load.n_sequences and load.n_free_sequences <= 0 for load in ranks):
        assert not pieces
    assert pieces == hand_out(waiting, ranks)


@given(requests, st.integers(1, 9))
def test_ranks_that_are_alike_take_alike(waiting, n_ranks):
    pieces = hand_out(waiting, [Load(0, 0, 10**6, 10**6)] * n_ranks)
    n_by_rank = [sum(piece.n_samples for piece in pieces if piece.rank == rank) for rank in range(n_ranks)]
    assert sum(n_by_rank) == sum(each.config.n for each in waiting)
    largest = max((piece.n_samples for piece in pieces), default=0)
    assert max(n_by_rank) - min(n_by_rank) <= largest


def ranks_of(waiting: list[Request], *ranks: Load) -> list[int]:
    return [piece.rank for piece in hand_out(waiting, ranks)]


def test_the_rank_with_the_fewest_sequences_comes_first():
    assert ranks_of([request()] * 4, Load(5, 0, 3, 1000), Load(3, 0, 5, 1000)) == [1, 1, 0, 1]


def test_a_rank_without_room_takes_nothing_but_one_that_replaces_what_ends_soon():
    assert ranks_of([request()] * 3, FULL, FULL) == []
    assert ranks_of([request()] * 3, FULL, Load(8, 0, 0, 1000)) == [1]
    assert ranks_of([request()] * 9, Load(64, 0, 0, 1000)) == [0] * 5  # one for each 16
    assert ranks_of([request(n_prompt_tokens=600)] * 5, IDLE) == [0, 0]  # the cache has 1,000 tokens


def test_samples_are_divided_only_among_ranks_that_would_get_no_request():
    assert [piece.n_samples for piece in hand_out([request(n=7)], [IDLE] * 3)] == [3, 2, 2]
    assert [piece.n_samples for piece in hand_out([request(n=2)], [IDLE] * 3)] == [1, 1]
    assert [piece.n_samples for piece in hand_out([request(n=4)] * 2, [IDLE] * 3)] == [2, 2, 2, 2]
    assert [piece.n_samples for piece in hand_out([request(n=4)] * 3, [IDLE] * 3)] == [4, 4, 4]
