"""Which gradients are summed, and which rank counts an element in the norm."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from reallm.model.parameters import parameter_infos
from reallm.parallel.grad_reduce import MAX_COALESCED_NUMEL, GradientReducer, all_reduce_coalesced, owned_for_norm
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import local_boxes
from tests.helpers.ranks import on_ranks
from tests.training.train_cases import CONFIGS

LAYOUTS = ["dp3", "fsdp4", "tp2", "tp4", "pp2", "pp3", "tp2pp2", "tp4pp2dp2", "tp2pp3fsdp2", "tp2fsdp3@5,0,3,1,2,4"]


@pytest.mark.parametrize("text", LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_element_of_the_network_is_counted_once(name: str, text: str) -> None:
    config, layout = CONFIGS[name], Layout.parse(text)
    counts = {info.name: torch.zeros(info.shape, dtype=torch.int64) for info in parameter_infos(config)}
    for rank in layout.ranks:
        boxes = local_boxes(config, layout, rank)
        for counted in owned_for_norm(config, Mesh(layout, rank)):
            counts[counted][boxes[counted].slices] += 1
    for parameter, count in counts.items():
        assert (count == 1).all(), parameter


def summed(rank: int, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    tensors = [torch.full(shape, float(rank + 1)) for shape in shapes]
    tensors.append(torch.full((2, 3), float(rank + 1), dtype=torch.float64))
    tensors.append(torch.full((300, 300), float(rank + 1)).t()[1:])
    all_reduce_coalesced(tensors, dist.group.WORLD)
    return tensors


def test_gradients_large_and_small_are_summed_in_place() -> None:
    shapes: list[tuple[int, ...]] = [(), (3,), (MAX_COALESCED_NUMEL + 1,), (2, 2), (300, 300), (0, 4)]
    for tensors in on_ranks(3, summed, shapes):
        assert [tuple(tensor.shape) for tensor in tensors] == [*shapes, (2, 3), (299, 300)]
        assert all((tensor == 6.0).all() for tensor in tensors)


def norms(rank: int, text: str) -> list[float]:
    config, mesh = CONFIGS["tied"], Mesh.of(text)
    boxes = local_boxes(config, mesh.layout, rank)
    reducer = GradientReducer(config, mesh, {}, torch.device("cpu"))
    some = reducer.norm({name: torch.full(box.shape, 0.5) for name, box in boxes.items()})
    none = reducer.norm({})
    bad = reducer.norm({name: torch.full(box.shape, math.nan if rank == 3 else 1.0) for name, box in boxes.items()})
    return [some.item(), none.item(), bad.item()]


@pytest.mark.parametrize("text", ["tp2pp2", "fsdp2pp2", "dp2tp2", "fsdp4"])
def test_the_norm_is_that_of_the_whole_network_on_all_ranks(text: str) -> None:
    n_elements = sum(math.prod(info.shape) for info in parameter_infos(CONFIGS["tied"]))
    by_rank = on_ranks(4, norms, text)
    for some, none, bad in by_rank:
        assert some == pytest.approx(0.5 * math.sqrt(n_elements), rel=1e-6)
        assert none == 0.0
        assert math.isnan(bad) or text == "dp2tp2"  # of copies the first is counted
    assert all(values[:2] == by_rank[0][:2] for values in by_rank)
