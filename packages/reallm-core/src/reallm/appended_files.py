"""Appends to files that grow line by line: after an error, a file ends where it ended before.

A process that is killed may still leave half a line, which those who read such a file pass over or cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is made if it does not exist: all of the content or nothing.

    Raises:
        OSError: nothing was appended, since the disk is full or damaged.
    """
    with closing_without_error(path.open("ab", buffering=0)) as file:
        write_all(file, content)


@contextmanager
def closing_without_error(file: FileIO) -> Iterator[FileIO]:
    """Context that closes a file: an error would tell of a disk that fails later, which is not waited for either."""
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def write_all(file: FileIO, content: bytes) -> None:
    """Write to an unbuffered file that is appended to: all of the content or, after an error, nothing.

    Raises:
        OSError: nothing was written, since the disk is full or damaged.
    """
    start, rest = os.fstat(file.fileno()).st_size, memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]  # less than all of it, if the disk is nearly full
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), start)  # unlike the file's own, it is tried again after a signal
        raise
