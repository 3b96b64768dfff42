"""Appending: all of it or nothing, whatever the disk takes at once."""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from reallm.appended_files import append, write_all


class Disk(FileIO):
    """A file on a disk that takes three bytes at once, and `room` in all."""

    room = 1000

    def write(self, content: Any) -> int:
        n = min(3, self.room, len(content))
        if not n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= n
        return super().write(bytes(content[:n]))


def test_what_is_written_in_parts_is_whole(tmp_path: Path) -> None:
    append(tmp_path / "lines", b"one\n")
    with Disk(tmp_path / "lines", "ab") as file:
        write_all(file, b"two and three\n")
    append(tmp_path / "lines", b"four\n")
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo and three\nfour\n"


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    append(tmp_path / "lines", b"one\n")
    with Disk(tmp_path / "lines", "ab") as file:
        file.room = 7
        with pytest.raises(OSError, match="No space left"):
            write_all(file, b"two and three\n")
    assert (tmp_path / "lines").read_bytes() == b"one\n"


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        append(tmp_path / "missing" / "lines", b"one\n")
