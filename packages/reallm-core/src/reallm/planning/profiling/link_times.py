"""Measures messages between the ranks of a job, and copies between a device and host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from reallm.offload.tensors import Offload
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Group, Mesh, all_gather_single, reduce_scatter_single
from reallm.planning.profiling.profile import LinkProfile
from reallm.planning.profiling.timing import synchronize, time_rounds

SIZES = (2**10, 2**14, 2**17, 2**20, 2**23)
"""Bytes of the messages that are measured on a CPU."""
GPU_SIZES = (*SIZES, 2**26, 2**28)
AT_ONCE = 4
"""Messages that are timed together."""


def measure_links(
    device: torch.device, seconds: float, advance: Callable[[float], None] = lambda share: None
) -> LinkProfile:
    """Measure the links of this machine. All ranks of a job make the same call; one process alone measures no messages.

    Args:
        device: where this rank computes.
        seconds: time for it.
        advance: called with the share of it that is done.
    """
    sizes = GPU_SIZES if device.type == "cuda" else SIZES
    n_ranks = dist.get_world_size() if dist.is_initialized() else 1
    works: dict[tuple[str, int, int], Callable[[], Sequence[float]]] = {}
    for size in sizes:
        tensor = torch.zeros(size, dtype=torch.uint8, device=device)
        works["host_copy", 1, size] = partial(_host_copy, tensor)
        n = 2
        while n <= n_ranks:
            mesh = Mesh.of(Layout(dp=n))
            whole = tensor.view(torch.float32)
            part = torch.zeros(len(whole) // n, device=device)
            works["all_reduce", n, size] = partial(_collective, mesh, device, partial(dist.all_reduce, whole))
            works["all_gather", n, size] = partial(_collective, mesh, device, partial(all_gather_single, whole, part))
            works["reduce_scatter", n, size] = partial(
                _collective, mesh, device, partial(reduce_scatter_single, part, whole)
            )
            n *= 2
        if n_ranks > 1:
            works["point_to_point", 2, size] = partial(_message, Mesh.of(Layout(dp=2)), tensor)
    medians = time_rounds(works, seconds, advance)

    def points(kind: str, n: int) -> tuple[tuple[int, float], ...]:
        return tuple((size, found[0]) for (of, ranks, size), found in medians.items() if (of, ranks) == (kind, n))

    def by_ranks(kind: str) -> dict[int, tuple[tuple[int, float], ...]]:
        return {n: points(kind, n) for of, n, _ in works if of == kind}

    return LinkProfile(
        by_ranks("all_reduce"),
        by_ranks("all_gather"),
        by_ranks("reduce_scatter"),
        points("point_to_point", 2),
        points("host_copy", 1),
    )


def _collective(mesh: Mesh, device: torch.device, collective: Callable[..., Any]) -> Sequence[float]:
    if not mesh.is_member:
        return [0.0]
    return _timed(device, lambda group: collective(group=group), mesh.all)


def _message(mesh: Mesh, tensor: torch.Tensor) -> Sequence[float]:
    if not mesh.is_member:
        return [0.0]

    def there_and_back(group: Group) -> None:
        for source in (0, 1):
            if mesh.rank == source:
                dist.send(tensor, 1 - source, group=group)
            else:
                dist.recv(tensor, source, group=group)

    return [_timed(tensor.device, there_and_back, mesh.all)[0] / 2]


def _timed(device: torch.device, work: Callable[[Group], Any], group: Group) -> Sequence[float]:
    dist.barrier(group=group)
    begin = synchronize(device)
    for _ in range(AT_ONCE):
        work(group)
    return [(synchronize(device) - begin) / AT_ONCE]


def _host_copy(tensor: torch.Tensor) -> Sequence[float]:
    """As models are offloaded: from a GPU to pinned memory, from a CPU to a file."""
    begin = synchronize(tensor.device)
    offload = Offload([[tensor]], tensor.device)
    offload.wait()
    offload.reload()
    return [(synchronize(tensor.device) - begin) / 2]
