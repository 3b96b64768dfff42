"""What all ranks of a layout do or none: a failure on one of them is everybody's, in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors import SafetensorError

from reallm.errors import DataError, PeerError, ReallmError
from reallm.parallel.mesh import Group, Mesh

T = TypeVar("T")
EXPECTED = (ReallmError, OSError, SafetensorError)
"""What may happen to a user. Anything else keeps its traceback on the rank where it happens."""


@contextmanager
def together(mesh: Mesh) -> Iterator[None]:
    """Leave the block when all ranks of the layout have come to its end, or with an error on all of them.

    In the block a rank does something of its own, such as writing a file, and talks to no other.

    Raises:
        ReallmError: the error of the first rank that has one, on all ranks; names it. Other exceptions than those of
            files are raised as they are where they occurred, and as a `PeerError` elsewhere.
    """
    if mesh.layout.size == 1:
        yield
        return
    mine: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others wait for a word
        mine = error
    said = all_gathered(None if mine is None else _told(mine, mesh.rank), mesh.all)
    first = next((each for each in said.values() if each is not None), None)
    if first is None:
        return
    if mine is not None and not isinstance(mine, EXPECTED):
        raise mine
    kind, text = first
    raise kind(text) from mine


def leads(mesh: Mesh) -> bool:
    """Whether this rank is the one that does what is done once."""
    return mesh.rank == mesh.layout.ranks[0]


def all_gathered(value: T, group: Group) -> dict[int, T]:
    """A small value of each rank of a group, by rank in ascending order."""
    ranks = dist.get_process_group_ranks(group)
    values: list[Any] = [None] * len(ranks)
    dist.all_gather_object(values, value, group=group)
    return dict(sorted(zip(ranks, values, strict=True)))


def _told(error: Exception, rank: int) -> tuple[type[ReallmError], str]:
    """What a rank says of its error to the others."""
    text = " ".join(str(error).split())
    if isinstance(error, ReallmError):
        return type(error), f"rank {rank}: {text}"
    if isinstance(error, OSError):
        return DataError, f"rank {rank}: {error.strerror or text}"
    if isinstance(error, SafetensorError):
        return DataError, f"rank {rank}: {text}"
    return PeerError, f"rank {rank} failed: {type(error).__name__}: {text}"
