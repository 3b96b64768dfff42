"""Ends this process when the one that launched it has ended, however early. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

LAUNCHER_PIPE = "REALLM_LAUNCHER_PIPE"
"""Environment variable with a file descriptor that reaches end of file when the launcher ends."""
_PR_SET_PDEATHSIG = 1
"""From `linux/prctl.h`: the signal that a process gets when its parent ends."""


def end_with_launcher() -> None:
    """End this process at once when its launcher ends, even if that is killed; does nothing without a launcher.

    On Linux the kernel does it. A thread that waits for the end of the pipe, as elsewhere, would have to wait for
    Python's lock, which an import of torch holds for seconds.
    """
    if LAUNCHER_PIPE not in os.environ:
        return
    pipe = int(os.environ[LAUNCHER_PIPE])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([pipe], [], [], 0)[0]:  # it has ended before
        os._exit(1)

    def watch() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
