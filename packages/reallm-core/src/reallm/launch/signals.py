"""Ctrl-C and SIGTERM end a run between two steps, so that what is saved is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from reallm.launch.job import Job

_MESSAGE = b"\nstopping after this step and saving; press Ctrl-C again to stop at once without saving\n"


class StopRequest(Protocol):
    """Whether the user has asked for the end, as `threading.Event` says it."""

    def is_set(self) -> bool:
        """Whether it is so."""


class SynchronizedStop:
    """The requests of all ranks of a job as one: they get the same answer at the same question.

    Args:
        own: the request to this process.
        job: all of whose processes ask equally often.
    """

    def __init__(self, own: StopRequest, job: Job) -> None:
        self._own, self._job = own, job
        self._is_agreed = False

    def is_set(self) -> bool:
        """Whether any rank has been asked to stop; all ranks wait here for each other."""
        self._is_agreed = self._is_agreed or self._job.any(self._own.is_set())
        return self._is_agreed


@contextmanager
def stop_requests(*, announced: bool = True) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second SIGINT raises KeyboardInterrupt at once.

    Outside the main thread, where Python allows no handlers, signals are left alone.

    Args:
        announced: say on standard error that the signal has been heard.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        if announced:
            os.write(2, _MESSAGE)  # print() may be what was interrupted

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
