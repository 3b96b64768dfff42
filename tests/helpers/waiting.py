"""Waits for what another thread, process or rank does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(is_so: Callable[[], object], timeout_s: float = 240.0) -> None:
    """Wait for a condition, and raise TimeoutError if it does not come true in time."""
    until = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError(f"it has not happened in {timeout_s:g} s")
        time.sleep(0.02)
