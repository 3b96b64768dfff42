"""SIGHUP as a terminal leaves it to what is started there, also in tests that are run under `nohup`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hangup_by_default() -> Iterator[None]:
    """Context in which this process, and those that it starts, do not ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
