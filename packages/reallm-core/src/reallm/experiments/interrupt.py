"""Ctrl-C and SIGTERM end a run between two steps, so that what is saved is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_MESSAGE = b"\nstopping after this step and saving; press Ctrl-C again to stop at once without saving\n"


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second SIGINT raises KeyboardInterrupt at once.

    Outside the main thread, where Python allows no handlers, signals are left alone.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        os.write(2, _MESSAGE)  # print() may be what was interrupted

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
