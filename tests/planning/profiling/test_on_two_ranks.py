"""Measurements on two ranks: one that computes alone, both at once, and networks that both divide."""

from __future__ import annotations

import torch

from reallm.planning.profiling.measure import MeasuredModel, measure
from reallm.planning.profiling.model_times import Sizes
from reallm.planning.profiling.profile import Profile, model_key
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

SIZES = Sizes(tp=(1, 2), passes=((1, 8), (2, 8)), widths=(2,), contexts=(4,))


def _measured(rank: int) -> Profile:
    return measure([MeasuredModel(TINY)], torch.device("cpu"), SIZES, seconds=0.01)


def test_one_rank_alone_and_both_at_once_are_measured() -> None:
    first, second = on_ranks(2, _measured)
    assert first == second
    [levels] = first.models.values()
    assert set(first.models) == {model_key(TINY, "torch.float32")}
    assert set(levels) == {1, 2}
    alone, both = levels[1], levels[2]
    assert {each.tp for each in alone.passes} == {1}
    assert {each.tp for each in both.passes} == {1, 2}
    assert {(each.tp, each.division) for each in alone.decoding} == {(1, "")}
    assert {(each.tp, each.division) for each in both.decoding} == {(1, ""), (2, ""), (1, "pp"), (1, "fsdp")}
    assert all(seconds > 0 for seconds in [each.block + each.ends for each in both.decoding])
    assert [n for n, _ in alone.optimizer] == [n for n, _ in both.optimizer]
    assert len(first.links.all_reduce[2]) == len(first.links.point_to_point) == 5
