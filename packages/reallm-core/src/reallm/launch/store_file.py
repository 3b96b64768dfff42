"""The file in which the processes of a job on one machine meet, and which no other user can read or write.

A server on a port, as torch's `TCPStore` is, would serve everyone who reaches the port, and tell them all keys.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

STORE_FILE = "REALLM_STORE_FILE"
"""Environment variable with the path of the file, as a process that the launcher has started sees it."""


class StoreFile:
    """A file for `torch.distributed.FileStore`.

    On Linux it has no name: the launcher and its processes have it open, and it ends with them. Elsewhere it lies in a
    temporary folder that only this user may enter.
    """

    def __init__(self) -> None:
        self.descriptors: tuple[int, ...] = ()
        """File descriptors that processes must inherit under the same numbers."""
        if sys.platform == "linux":
            self.descriptors = (os.memfd_create("reallm-store", 0),)
            self.path = f"/proc/self/fd/{self.descriptors[0]}"
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="reallm-")
            self.path = str(Path(self._folder.name, "store"))

    def close(self) -> None:
        """Close or remove the file; processes that still have it open may go on using it."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = ()
        if sys.platform != "linux":
            self._folder.cleanup()
