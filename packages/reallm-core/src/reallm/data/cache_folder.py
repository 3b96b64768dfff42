"""Folders in the user's cache: where they are, and what in them has not been used for long."""

from __future__ import annotations

import os
import time
from pathlib import Path

from reallm.arguments import as_path

DAYS = 30
"""What was not used for so many days is removed when something else is written."""


def cache_folder(name: str) -> Path:
    """`reallm/<name>` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return as_path(home) / "reallm" / name


def can_write(folder: Path) -> bool:
    """Whether files can be written in a folder, which is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def is_unused(file: Path) -> bool:
    """Whether a file was neither written nor marked as used for so long that it is to be removed.

    Raises:
        OSError: the file is gone.
    """
    return file.stat().st_mtime < time.time() - DAYS * 24 * 3600
