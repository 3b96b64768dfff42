"""The process group of the ranks of a reallocation, made when these ranks first communicate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from reallm.errors import PeerError
from reallm.parallel.mesh import Group, Mesh
from reallm.reallocation.transfer import Deadline, Endpoint, timed_out
from reallm.reallocation.types import Ranks


def transfer_group(
    mesh: Mesh, ranks: Ranks, endpoints: Sequence[Endpoint], *, device: torch.device, deadline: Deadline
) -> Group:
    """The group of some ranks, including this one; other ranks of the job take no part in making it.

    The mesh keeps it. Before it is made, all of its ranks check in at the job's store, so that a missing rank can be
    named; a backend that connects ranks could not name it.

    Args:
        mesh: keeps the group and gives its timeout.
        ranks: all ranks that take part in the reallocation.
        endpoints: endpoints of this rank's messages, used to report what a missing rank was needed for.
        device: device of the tensors that are sent.
        deadline: deadline of the reallocation.

    Raises:
        PeerError: a rank has not checked in in time, or was lost; names it and a parameter.
    """

    is_new = False

    def check_in(name: str) -> None:
        nonlocal is_new
        is_new = True
        timeout = deadline.remaining or mesh.group_timeout
        missing = _check_in(name, mesh.rank, ranks, timeout)
        if missing:
            first = next((one for one in endpoints if one.peer in missing), None)
            peer, awaited = (first.peer, first.awaited) if first else (missing[0], "to join the reallocation")
            raise timed_out(mesh.rank, peer, awaited, deadline)

    try:
        group = mesh.transfer_group(ranks, check_in)
        if is_new and device.type == "cuda":  # NCCL connects ranks in the first operation, which must involve all
            dist.all_reduce(torch.zeros(1, device=device), group=group)
        return group
    except RuntimeError as error:
        raise PeerError(
            f"rank {mesh.rank} could not connect to ranks {', '.join(map(str, ranks))} within "
            f"{deadline.elapsed_s:.1f} s: one of them is gone or stuck; see the messages of the others"
        ) from error


def _check_in(name: str, rank: int, ranks: Ranks, timeout: timedelta) -> list[int]:
    """Wait in the job's store for all ranks of a group; returns the ranks that are missing."""
    store = c10d._get_default_store()
    keys = {other: f"{name}/{other}" for other in ranks}
    store.set(keys[rank], "")
    try:
        store.wait(list(keys.values()), timeout)
    except RuntimeError:  # stores raise different errors
        missing = [other for other, key in keys.items() if not store.check([key])]
        if not missing:
            raise
        return missing
    return []
