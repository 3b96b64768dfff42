"""Git LFS pointers: a few lines of text that lie in place of a file until it is fetched. Imports no torch."""

from __future__ import annotations

from pathlib import Path

_BEGINNING = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file is a Git LFS pointer."""
    try:
        if not file.is_file():  # opening a pipe would wait
            return False
        with file.open("rb") as opened:
            return opened.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def lfs_pointer_problem(file: Path) -> str:
    """The message of an error about a file that is a pointer."""
    return f"{file} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` in {file.parent}"
