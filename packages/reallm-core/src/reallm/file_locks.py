"""Locks of files, which the system releases when the process that holds them ends, however it ends. POSIX only."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from reallm.other_users import user_name

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


def wait_for_lock(descriptor: int) -> None:
    """Lock an open file as soon as no other process has it; raises OSError on a file system that has no locks."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool | None:
    """Whether a process has locked a file; None if that is unknown, on a file system that has no locks.

    A file that does not exist is not locked, and is not made.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def holder(descriptor: int) -> str:
    """Which process has the lock of a file that is not ours, for the end of a message: ` (process 123 of bob)`.

    Empty where the system does not say. Another user only has to read a file to lock it.
    """
    file = os.fstat(descriptor)
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with suppress(OSError, IndexError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            columns = line.split()  # `1: FLOCK  ADVISORY  WRITE 13478 fe:00:2383926 0 EOF`
            if columns[1] == "FLOCK" and columns[5] == place:
                owner = Path(f"/proc/{columns[4]}").stat().st_uid
                return f" (process {columns[4]}{'' if owner == os.geteuid() else f' of {user_name(owner)}'})"
    return ""


def release(descriptor: int) -> None:
    """Close a locked file that was only opened for its lock, so that an error of closing it is about nothing."""
    with suppress(OSError):
        os.close(descriptor)
