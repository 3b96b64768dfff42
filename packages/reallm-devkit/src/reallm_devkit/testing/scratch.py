"""Temporary folders for the files that checks write."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

PREFIX = "reallm-check-"


class ScratchFolder:
    """A new temporary folder, deleted when this object is garbage-collected."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix=PREFIX)).resolve()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new temporary folder, deleted at the end of the block."""
    folder = ScratchFolder()
    yield folder.path
