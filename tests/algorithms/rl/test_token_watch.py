"""What the loss sees of the tokens of a few answers, wherever in the layout it is computed."""

from __future__ import annotations

import math

import torch

from reallm.algorithms.rl.token_watch import TokenWatch
from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.parallel.mesh import Mesh
from tests.helpers.ranks import on_ranks

LENGTHS = [2, 0, 1, 3]


def answers() -> NamedArray:
    """Two answers to each of two prompts of one token; one answer is empty."""
    ids = [token for i, n in enumerate(LENGTHS) for token in [i // 2, *range(10 * i, 10 * i + n)]]
    n = sum(LENGTHS)
    return NamedArray(input_ids=torch.tensor(ids), logprobs=torch.zeros(n)).with_metadata(
        seqlens={"input_ids": [(n + 1,) for n in LENGTHS], "logprobs": [(n,) for n in LENGTHS]},
        ids=["a", "a", "b", "b"],
        groups=[0, 0, 1, 1],
    )


def test_the_first_numbers_of_the_watched_answers_are_kept() -> None:
    watch, batch = TokenWatch(), answers()
    watch.begin(batch, 1)
    watch.note(select(batch, [3, 0]), torch.tensor([3.0, 3.0, 3.0, 0.5, 0.25]))
    watch.note(select(batch, [0]), torch.tensor([9.0, 9.0]))
    found = watch.end(batch, None).tolist()
    assert found[:2] == [0.5, 0.25]
    assert all(map(math.isnan, found[2:]))


def seen_by(rank: int) -> list[float]:
    watch, batch = TokenWatch(), answers()
    watch.begin(batch, None)
    mine = [0, 1] if rank == 0 else [2, 3]
    watch.note(select(batch, mine), torch.full((sum(LENGTHS[i] for i in mine),), float(rank)))
    return watch.end(batch, Mesh.of("dp2")).tolist()


def test_each_rank_gets_the_numbers_of_all_ranks() -> None:
    for found in on_ranks(2, seen_by):
        assert found == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
