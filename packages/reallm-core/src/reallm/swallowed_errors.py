"""Raises errors of looking at files that others swallow: `os.path.isfile` and its kin then say that nothing is there.

A library that asks them, as transformers does, goes on without a file that the disk does not give at that moment.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TESTS: Mapping[str, Callable[[int], bool]] = {
    "exists": lambda mode: True,
    "isdir": stat.S_ISDIR,
    "isfile": stat.S_ISREG,
}
"""Functions of `os.path` -> what they ask of the mode of what a path leads to."""
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_replaced = threading.RLock()


@contextmanager
def raising_swallowed(folder: Path) -> Iterator[None]:
    """Context that ends with the first error that `os.path.exists`, `isdir` or `isfile` swallowed in it.

    Only errors of this thread count, about the folder and what is in it. They take the place of another exception,
    which only follows from them. The functions are replaced meanwhile, and answer as before.

    Raises:
        OSError: a file or folder could not be looked at; names it.
    """
    swallowed: list[OSError] = []
    thread, top = threading.get_ident(), str(folder)

    def note(error: OSError) -> None:
        path = "" if isinstance(error.filename, int | None) else os.fsdecode(error.filename)
        is_inside = path == top or path.startswith(f"{top}{os.sep}")
        if is_inside and error.errno not in _NOT_THERE and threading.get_ident() == thread:
            swallowed.append(error)

    try:
        with _replaced, _replacing({name: _asking(test, note) for name, test in _TESTS.items()}):
            yield
    except Exception as error:
        if swallowed:
            raise swallowed[0] from error
        raise
    if swallowed:
        raise swallowed[0]


def _asking(test: Callable[[int], bool], note: Callable[[OSError], None]) -> Callable[[Any], bool]:
    def ask(path: Any) -> bool:
        try:
            return test(os.stat(path).st_mode)  # noqa: PTH116 - it may be any kind of path
        except OSError as error:
            note(error)
        except ValueError:  # a path with a null byte
            pass
        return False

    return ask


@contextmanager
def _replacing(functions: Mapping[str, Callable[[Any], bool]]) -> Iterator[None]:
    originals = {name: getattr(os.path, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(os.path, name, function)
        yield
    finally:
        for name, function in originals.items():
            setattr(os.path, name, function)
