"""Folders for the files that checks write."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

PREFIX = "reallm-check-"


class Folder:
    """A new folder that is removed with this object."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix=PREFIX)).resolve()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder that is removed at the end of the block."""
    folder = Folder()
    yield folder.path
