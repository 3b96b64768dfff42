"""Collectives for Python objects: all-gather of JSON values, and errors that all ranks raise together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from reallm import errors
from reallm.errors import DataError, PeerError, ReallmError, one_line, short_reason
from reallm.parallel.mesh import Group, Mesh, all_gather_single

USER_ERRORS = (ReallmError, OSError, SafetensorError)
"""Errors that a user can fix. Any other error keeps its traceback on the rank where it is raised."""
_ERROR_CLASSES = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ReallmError)
}


@contextmanager
def fail_together(mesh: Mesh | None) -> Iterator[None]:
    """Context that ends once all ranks of the layout have reached its end, or raises on all of them if one has failed.

    The block is for work that each rank does alone, such as writing a file, without collectives. Without a mesh, or in
    a layout of one rank, the context does nothing.

    Raises:
        ReallmError: on all ranks, the error of the first rank that failed, with its number. An error that a user cannot
            fix is raised unchanged on its rank, and as a `PeerError` on the others.
    """
    if mesh is None or mesh.layout.size == 1:
        yield
        return
    local_error: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever the error, the other ranks wait in the all-gather
        local_error = error
    by_rank = all_gather_json(None if local_error is None else describe_error(local_error, mesh.rank), mesh.all)
    raise_first_error(by_rank.values(), local_error)


def is_leader(mesh: Mesh | None) -> bool:
    """Whether this is the first rank of the layout, which does the work of a single rank, such as writing a file."""
    return mesh is None or mesh.rank == mesh.layout.ranks[0]


def describe_error(error: Exception, rank: int) -> tuple[str, str]:
    """The class name and the message with which all ranks raise one rank's error."""
    text = one_line(error)
    if isinstance(error, ReallmError):
        name = type(error).__name__
        is_named = re.match(r"rank \d+", text)  # by an inner `fail_together`
        return name if name in _ERROR_CLASSES else ReallmError.__name__, text if is_named else f"rank {rank}: {text}"
    if isinstance(error, OSError | SafetensorError):
        return DataError.__name__, f"rank {rank}: {short_reason(error)}"
    return PeerError.__name__, f"rank {rank} failed: {type(error).__name__}: {text}"


def raise_first_error(errors: Iterable[Sequence[str] | None], local_error: Exception | None) -> None:
    """Raise the first of the errors of some ranks, if there is one.

    Args:
        errors: `describe_error` of each rank's error, in the same order on all ranks; None for ranks without one.
        local_error: this rank's error, which is raised unchanged if a user cannot fix it.
    """
    first = next((error for error in errors if error is not None), None)
    if first is None:
        return
    if local_error is not None and not isinstance(local_error, USER_ERRORS):
        raise local_error
    class_name, text = first
    raise _ERROR_CLASSES[class_name](text) from local_error


def all_gather_json(value: Any, group: Group) -> dict[int, Any]:
    """All-gather of JSON values: rank -> value, in ascending order of ranks.

    Args:
        value: any JSON value; floats arrive exactly, including non-finite ones.
        group: process group with a backend for CPU tensors.
    """
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    ranks = dist.get_process_group_ranks(group)
    lengths = torch.empty(len(ranks), dtype=torch.int64)
    all_gather_single(lengths, torch.tensor([text.numel()]), group=group)
    longest = int(lengths.max())
    texts = torch.empty(len(ranks), longest, dtype=torch.uint8)
    padded = torch.nn.functional.pad(text, (0, longest - text.numel()))
    all_gather_single(texts.view(-1), padded, group=group)
    values = [json.loads(text[:length].numpy().tobytes()) for text, length in zip(texts, lengths.tolist(), strict=True)]
    return dict(sorted(zip(ranks, values, strict=True)))
