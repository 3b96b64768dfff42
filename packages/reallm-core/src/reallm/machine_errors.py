"""Errors that are neither the user's mistake nor a bug: the machine has no more memory, files, threads or disk.

Libraries raise them in many classes, of which only the text tells what they are: torch a `RuntimeError`, an import an
`ImportError`, Rust its own. This is the one place that knows them; the command line and the processes of a job turn
them into one line. Imports nothing that would need memory or files at that moment.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from reallm.errors import MachineError, ReallmError, cut, one_line

_MEMORY = (
    "more memory is asked for than this process can have; lower what is computed at once "
    "(max_tokens_per_microbatch, batch sizes), take a smaller model, or raise the limit (ulimit -v)"
)
_FILES = "too many files are open; raise the limit (ulimit -n 4096)"
_PROCESSES = (
    "no more threads or processes can be started; raise the limits (ulimit -u, ulimit -v), or set OMP_NUM_THREADS lower"
)
_BY_CODE = {
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: _PROCESSES,
}
_BY_WORDS = {
    "allocate memory": _MEMORY,  # torch on a CPU, and the system
    "out of memory": _MEMORY,  # CUDA
    "bad_alloc": _MEMORY,
    "failed to map segment": _MEMORY,  # the dynamic linker, in an import
    "(os error 12)": _MEMORY,  # Rust
    "too many open files": _FILES,
    "(os error 24)": _FILES,
    "start new thread": _PROCESSES,
    "thread creation failed": _PROCESSES,
    "resource temporarily unavailable": _PROCESSES,
    "(os error 11)": _PROCESSES,
}
"""Words of messages -> what is lacking. Only those of classes that have no number for it are looked at."""
_ON_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
_LONGEST_DETAIL = 200


def shortage(error: BaseException) -> str | None:
    """What this process can have no more of, and what to do about it; None for other errors.

    It has nothing to do with what was read or computed when the error was raised.
    """
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_CODE.get(error.errno)
    if isinstance(error, RuntimeError | ImportError | OSError) or type(error).__name__ == "SafetensorError":
        text = str(error).lower()
        return next((found for words, found in _BY_WORDS.items() if words in text), None)
    return None


def raise_shortage(error: BaseException) -> None:
    """Raise an error again if it is a shortage.

    The first thing to call where the error would be taken for a property of what is read, computed or probed.
    """
    if shortage(error) is not None:
        raise error


def is_of_disk(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether the disk, or who may use it, is the reason of an error, and not what is there or missing."""
    return isinstance(error, OSError) and error.errno in _ON_DISK


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context whose errors of calls about an open file, which do not know its name, get this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _has_folder() -> bool:
    """Whether the current folder still exists."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def as_machine_error(error: Exception) -> Exception:
    """The error of one line for an error that is the machine's; other errors as they are."""
    if isinstance(error, ReallmError):
        return error
    found = shortage(error)
    if found is not None:
        return MachineError(f"{found} ({cut(one_line(error), _LONGEST_DETAIL)})")
    if is_of_disk(error):
        # a call about an open file does not know its name
        which = "a file cannot be read or written" if error.filename is None else error.filename
        return MachineError(f"{which}: {error.strerror}; free the disk, change the permissions, or give another folder")
    if isinstance(error, OSError) and error.errno in _NO_PATH:
        return MachineError(f"{cut(str(error.filename), _LONGEST_DETAIL)}: {error.strerror}; give another path")
    if isinstance(error, FileNotFoundError) and not _has_folder():
        return MachineError("the folder that this command was started in no longer exists; change to another one (cd)")
    return error
