"""Tensors of which several ranks have parts, put together where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.model.sharding import Box
from reallm.parallel.mesh import Mesh
from reallm.reallocation.plan import plan_boxes

Boxes = Mapping[int, Mapping[str, Box]]
"""Rank -> name -> the part of it there, in coordinates of the whole."""


def gathered(
    held: Boxes,
    wanted: Boxes,
    local: Mapping[str, Tensor],
    mesh: Mesh,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """This rank's part of what is wanted; all ranks of the layout call it.

    Args:
        held: what ranks have; of several that have the same, the busiest is spared.
        wanted: what ranks are to have.
        local: this rank's parts of `held`, of one type and on one device.
        mesh: the layout.
        dtype: of the result.
        device: of the result.
    """
    mine, plan = wanted.get(mesh.rank, {}), plan_boxes(held, wanted).for_rank(mesh.rank)
    found = {name: torch.empty(box.shape, dtype=dtype, device=device) for name, box in mine.items()}
    have = held.get(mesh.rank, {})

    def part_here(name: str, box: Box) -> Tensor:
        return local[name][box.within(have[name]).slices]

    for name, box in ((name, move.box) for move in plan.keeps for name in move.names):
        found[name][box.within(mine[name]).slices] = part_here(name, box)
    if mesh.layout.size == 1:
        return found
    sent, works = [], []
    for name, move in ((name, one) for one in plan.sends for name in one.names):
        sent.append(part_here(name, move.box).to(device, dtype).contiguous())
        works.append(dist.isend(sent[-1], move.target, group=mesh.all))
    received = [
        (name, move, torch.empty(move.box.shape, dtype=dtype, device=device))
        for move in plan.receives
        for name in move.names
    ]
    works += [dist.irecv(part, move.source, group=mesh.all) for _, move, part in received]
    for work in works:
        assert work is not None
        work.wait()
    for name, move, part in received:
        found[name][move.box.within(mine[name]).slices] = part
    return found
