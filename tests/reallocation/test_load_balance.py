"""How much each sender sends, and where a line of pieces is cut between them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.model.sharding import Box
from reallm.reallocation.load_balance import PRECISION, BoxOfParams, TransferBatch, balance_senders, cut_by_sender
from reallm.reallocation.ownership import OwnerIndex
from tests.reallocation.planned import least_of_the_busiest


class TestSharingOut:
    @pytest.mark.parametrize(
        ("demands", "loads"),
        [
            ({}, {}),
            ({(3,): 5}, {3: 5}),
            ({(0, 1, 2, 3): 10}, dict.fromkeys(range(4), 2.5)),
            ({(0,): 6, (0, 1): 4}, {0: 6, 1: 4}),
            ({(0,): 2, (0, 1): 4}, {0: 3, 1: 3}),
            ({(0, 1): 8, (1, 2): 0, (2,): 1}, {0: 4, 1: 4, 2: 1}),
            ({(0,): 9, (0, 1): 3, (1, 2): 3, (2, 3): 3}, {0: 9, 1: 3, 2: 3, 3: 3}),
        ],
    )
    def test_by_hand(self, demands, loads):
        shares = balance_senders(demands)
        found = dict.fromkeys(loads, 0.0)
        for ranks, amounts in shares.by_owners.items():
            assert sum(amounts) == pytest.approx(demands[ranks])
            for rank, amount in zip(ranks, amounts, strict=True):
                found[rank] += amount
        assert found == pytest.approx(loads, rel=1e-2, abs=1e-9)
        assert shares.min_max_sent == pytest.approx(max(loads.values(), default=0), rel=PRECISION)

    @settings(max_examples=300, deadline=None)
    @given(st.dictionaries(st.integers(1, 2**7 - 1), st.integers(0, 10**9), max_size=12))
    def test_any_groups(self, demands):
        """The bound is one, and is met as closely as is claimed."""
        groups = {tuple(rank for rank in range(7) if bits >> rank & 1): n for bits, n in demands.items()}
        shares = balance_senders(groups)
        loads = [0.0] * 7
        for ranks, amounts in shares.by_owners.items():
            assert sum(amounts) == pytest.approx(groups[ranks])
            assert min(amounts) >= 0
            for rank, amount in zip(ranks, amounts, strict=True):
                loads[rank] += amount
        best = least_of_the_busiest(demands)
        assert shares.min_max_sent <= best * (1 + 1e-9)  # it is a sum of floating-point numbers
        assert max(loads) <= best * (1 + 2 * PRECISION)

    def test_a_long_chain_of_groups(self):
        """Work has to be handed on from group to group, 30 times over."""
        demands = {(rank, rank + 1): 0.0 for rank in range(30)} | {(0, 1): 310.0}
        demands |= {(rank, rank + 1): 10.0 for rank in range(1, 30)}
        shares = balance_senders(demands)
        loads = [0.0] * 31
        for ranks, amounts in shares.by_owners.items():
            for rank, amount in zip(ranks, amounts, strict=True):
                loads[rank] += amount
        assert max(loads) == pytest.approx(155)  # only 0 and 1 can send the 310
        assert shares.min_max_sent == pytest.approx(155)


def weights(batches: list[TransferBatch]) -> int:
    return sum(batch.weight for batch in batches)


class TestCutting:
    BATCHES = (
        TransferBatch((7, 8), (BoxOfParams(("a", "b"), Box((0, 0), (10, 4))), BoxOfParams(("c",), Box((2,), (9,))))),
        TransferBatch((9,), (BoxOfParams(("a", "b"), Box((10, 0), (12, 4))),)),
    )
    """Two targets with 87 elements each, and one with 16."""

    def test_between_targets_where_that_is_near(self):
        first, second = cut_by_sender(self.BATCHES, (90.0, 100.0), slack=4.0)
        assert [batch.targets for batch in first] == [(7,)]
        assert [batch.targets for batch in second] == [(8,), (9,)]

    def test_between_parameters_next(self):
        first, _ = cut_by_sender(self.BATCHES, (43.0, 147.0), slack=4.0)
        assert first == [TransferBatch((7,), (BoxOfParams(("a",), Box((0, 0), (10, 4))),))]

    def test_between_rows_next(self):
        first, second = cut_by_sender(self.BATCHES, (21.0, 169.0), slack=2.0)
        assert first == [TransferBatch((7,), (BoxOfParams(("a",), Box((0, 0), (5, 4))),))]
        assert second[0] == TransferBatch((7,), (BoxOfParams(("a",), Box((5, 0), (10, 4))),))

    def test_inside_a_row_last(self):
        first, second = cut_by_sender(self.BATCHES, (21.0, 169.0), slack=0.0)
        rows, cells = BoxOfParams(("a",), Box((0, 0), (5, 4))), BoxOfParams(("a",), Box((5, 0), (6, 1)))
        assert first == [TransferBatch((7,), (rows,)), TransferBatch((7,), (cells,))]
        assert second[0] == TransferBatch((7,), (BoxOfParams(("a",), Box((5, 1), (6, 4))),))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 3.0, 20.0]), st.data())
    def test_all_goes_to_someone_and_no_one_is_far_from_its_share(self, ends, slack, data):
        line = [
            TransferBatch(
                tuple(range(first, first + data.draw(st.integers(1, 3)))),
                tuple(
                    BoxOfParams(("x", "y", "z")[: data.draw(st.integers(1, 3))], Box((start, 0), (start + 3, 2)), 2)
                    for start in range(data.draw(st.integers(1, 3)))
                ),
            )
            for first in range(data.draw(st.integers(1, 4)))
        ]
        total = weights(line)
        shares = [total * end / sum(ends) if sum(ends) else total / len(ends) for end in ends]
        found = list(cut_by_sender(line, shares, slack))
        assert len(found) == len(shares)
        for batches, share in zip(found, shares, strict=True):
            # Both ends may miss, by the slack or half an element of two bytes.
            assert abs(weights(batches) - share) <= 2 * max(slack, 1.0) + 1e-6
        pieces = [pieces_of(batches) for batches in (line, [batch for batches in found for batch in batches])]
        assert pieces[0] == pieces[1]


def pieces_of(batches: list[TransferBatch]) -> list[tuple[int, str, int, int]]:
    """Every element that is sent, sorted: target, parameter, and where in it."""
    return sorted(
        (target, name, row, column)
        for batch in batches
        for target in batch.targets
        for box in batch.boxes
        for name in box.names
        for row in range(box.box.starts[0], box.box.stops[0])
        for column in range(box.box.starts[1], box.box.stops[1])
    )


class TestOwnerIndex:
    def test_parts_that_overlap_are_cut_where_their_holders_change(self):
        index = OwnerIndex({Box((0,), (6,)): (0,), Box((4,), (9,)): (1, 3), Box((5,), (20,)): (2,)})
        found = {(box.starts[0], box.stops[0]): ranks for box, ranks in index.lookup(Box((2,), (12,)))}
        assert found == {(2, 4): (0,), (4, 5): (0, 1, 3), (5, 6): (0, 1, 2, 3), (6, 9): (1, 2, 3), (9, 12): (2,)}

    def test_a_long_part_is_found_behind_short_ones(self):
        index = OwnerIndex({Box((0,), (20,)): (0,), Box((1,), (2,)): (1,), Box((3,), (4,)): (2,)})
        assert index.lookup(Box((10,), (12,))) == [(Box((10,), (12,)), (0,))]

    def test_what_nobody_has_is_left_out(self):
        assert OwnerIndex({}).lookup(Box((0,), (3,))) == []
        assert OwnerIndex({Box((0,), (2,)): (5,)}).lookup(Box((1,), (3,))) == [(Box((1,), (2,)), (5,))]
