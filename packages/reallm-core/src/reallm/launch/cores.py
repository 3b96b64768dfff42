"""The CPU cores of this machine. Imports no torch."""

from __future__ import annotations

import os


def n_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
