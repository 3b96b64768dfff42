import torch
import torch.distributed as dist

from tests.helpers.ranks import on_ranks


def summed(rank: int, start: int) -> float:
    value = torch.tensor(float(start + rank))
    dist.all_reduce(value)
    return value.item()


def test_it():
    assert on_ranks(2, summed, 1) == [3.0, 3.0]
    assert on_ranks(3, summed, 1) == [6.0] * 3
