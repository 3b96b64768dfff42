"""Signals that stop a run between two steps, so that it can save whole checkpoints: Ctrl-C, SIGTERM, SIGHUP."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from reallm.launch.job import Job

INTERRUPTED = 130
"""Exit code of a run that the user stopped by a signal, as shells define it."""
_MESSAGE = b"\nstopping after this step and saving; press Ctrl-C again to stop at once without saving\n"


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM, and SIGHUP, which a terminal sends when it closes; not the last if it is ignored (`nohup`)."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_ignored else [signal.SIGHUP])]


def leave_signals_to_parent() -> None:
    """Do nothing at a signal that reaches a whole job: the process that started this one decides, and ends it.

    For a process that ends with its parent. Programs and processes that it starts itself have the usual handling.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _do_nothing)  # unlike an ignored signal, it is not handed on to other programs
    os.register_at_fork(after_in_child=_handle_as_usual)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _handle_as_usual() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class StopRequest(Protocol):
    """A flag that is set when the user asks to stop, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether the user has asked to stop."""


class SynchronizedStop:
    """Combines the stop requests of all ranks: at the same call, all ranks get the same answer.

    Args:
        local: the stop request of this process.
        job: the job, all of whose processes call `is_set` equally often.
    """

    def __init__(self, local: StopRequest, job: Job) -> None:
        self._local, self._job = local, job
        self._is_set = False

    def is_set(self) -> bool:
        """Whether any rank has been asked to stop; an all-reduce."""
        self._is_set = self._is_set or self._job.any(self._local.is_set())
        return self._is_set


@contextmanager
def stop_requests(*, announce: bool = True) -> Iterator[threading.Event]:
    """Context with an event that the first of `stop_signals` sets; a second SIGINT raises KeyboardInterrupt at once.

    Outside the main thread, where Python allows no signal handlers, signals are left alone.

    Args:
        announce: confirm the first signal on standard error.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        if announce:
            with suppress(OSError):  # the terminal may be gone
                os.write(2, _MESSAGE)  # the signal may have interrupted a print()

    previous = {number: signal.signal(number, on_signal) for number in stop_signals()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
