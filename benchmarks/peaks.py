"""The most memory that this process holds over a time: resident memory, or on a GPU allocated memory."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch


def start_counting(device: torch.device) -> int:
    """Bytes held now, without what is garbage or what the allocator only keeps; the peak counts from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of resident memory begins anew
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """The most bytes held since then."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
