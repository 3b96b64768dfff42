"""What all ranks of a layout do or none: a failure on one of them is everybody's, in the same words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from reallm import errors
from reallm.errors import DataError, PeerError, ReallmError
from reallm.parallel.mesh import Group, Mesh, all_gather_single

EXPECTED = (ReallmError, OSError, SafetensorError)
"""What may happen to a user. Anything else keeps its traceback on the rank where it happens."""


_KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ReallmError)}


@contextmanager
def fail_together(mesh: Mesh | None) -> Iterator[None]:
    """Leave the block when all ranks of the layout have come to its end, or with an error on all of them.

    In the block a rank does something of its own, such as writing a file, and talks to no other. Without a mesh, or in
    a layout of one rank, it is a block like any other.

    Raises:
        ReallmError: the error of the first rank that has one, on all ranks; names it. Other exceptions than those of
            files are raised as they are where they occurred, and as a `PeerError` elsewhere.
    """
    if mesh is None or mesh.layout.size == 1:
        yield
        return
    mine: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others wait for a word
        mine = error
    said = all_gather_json(None if mine is None else _told(mine, mesh.rank), mesh.all)
    first = next((each for each in said.values() if each is not None), None)
    if first is None:
        return
    if mine is not None and not isinstance(mine, EXPECTED):
        raise mine
    kind, text = first
    raise _KINDS[kind](text) from mine


def is_leader(mesh: Mesh | None) -> bool:
    """Whether this rank is the one that does what is done once."""
    return mesh is None or mesh.rank == mesh.layout.ranks[0]


def _told(error: Exception, rank: int) -> tuple[str, str]:
    """What a rank says of its error to the others."""
    text = " ".join(str(error).split())
    if isinstance(error, ReallmError):
        kind = type(error).__name__
        return kind if kind in _KINDS else ReallmError.__name__, f"rank {rank}: {text}"
    if isinstance(error, OSError):
        return DataError.__name__, f"rank {rank}: {error.strerror or text}"
    if isinstance(error, SafetensorError):
        return DataError.__name__, f"rank {rank}: {text}"
    return PeerError.__name__, f"rank {rank} failed: {type(error).__name__}: {text}"


def all_gather_json(value: Any, group: Group) -> dict[int, Any]:
    """What each rank of a group says, by rank in ascending order; all of them call it.

    Args:
        value: whatever JSON has a form for; floats, those that are not finite too, arrive as they are.
        group: one that has a backend for tensors on the CPU.
    """
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    ranks = dist.get_process_group_ranks(group)
    lengths = torch.empty(len(ranks), dtype=torch.int64)
    all_gather_single(lengths, torch.tensor([text.numel()]), group=group)
    longest = int(lengths.max())
    texts = torch.empty(len(ranks), longest, dtype=torch.uint8)
    own = torch.nn.functional.pad(text, (0, longest - text.numel()))
    all_gather_single(texts.view(-1), own, group=group)
    each = [json.loads(bytes(text[:length].tolist())) for text, length in zip(texts, lengths.tolist(), strict=True)]
    return dict(sorted(zip(ranks, each, strict=True)))
