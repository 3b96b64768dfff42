"""Locks of files, which the system releases when the process that holds them ends, however it ends. POSIX only."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EBADF)


def try_lock(descriptor: int) -> bool:
    """Lock an open file; returns whether no other process has it. True on a file system that has no locks.

    Raises:
        OSError: the file system has locks, and cannot say.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def release(descriptor: int) -> None:
    """Close a locked file that was only opened for its lock, so that an error of closing it is about nothing."""
    with suppress(OSError):
        os.close(descriptor)
