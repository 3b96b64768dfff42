"""Memory of the machine: what is free, and what this process has held."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a device; None where that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [limit for limit in (_cgroup_available(), _meminfo("MemAvailable")) if limit is not None]
    return min(limits, default=None)


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held so far: tensors on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # POSIX only, like the other functions that inspect the machine

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def give_back_freed_memory() -> None:
    """Return to the system what the C library keeps of freed memory; nothing where it is not glibc.

    It keeps freed blocks of up to 32 MiB, in a heap of each thread, and at times most of it between small blocks.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _cgroup_available() -> int | None:
    """Bytes left below a container's limit, cgroup version 2 or 1; None without a limit."""
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            maximum = Path(limit).read_text(encoding="ascii").strip()
            used = int(Path(usage).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if maximum != "max" and int(maximum) < 2**60:  # version 1 says "no limit" with a huge number
            return max(0, int(maximum) - used)
    return None


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
