"""Folders of caches: the user's own, and those that are named; what in them has not been used for long.

Whoever can write into a cache decides what is trained on, and whoever can read it has the data. So the user's cache is
for this user alone, and a named one is nowhere that everyone can write.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from reallm.arguments import as_path
from reallm.errors import ConfigError
from reallm.other_users import is_everyones

DAYS = 30
"""What was not used for so many days is removed when something else is written."""


def cache_folder(name: str) -> Path:
    """`reallm/<name>` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return as_path(home) / "reallm" / name


def user_cache(name: str) -> Path | None:
    """The folder of `cache_folder`, made for this user alone if it does not exist.

    None if it cannot be made or written, or if somebody else could have filled it: it belongs to another user, or
    everyone may write there.
    """
    folder = cache_folder(name)
    top = folder.parent
    with suppress(OSError):
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        if top.stat().st_uid == os.geteuid() and not is_everyones(top):
            if top.stat().st_mode & 0o077:  # an earlier version has made it
                top.chmod(0o700)
            return folder if can_write(folder) else None
    return None


def can_write(folder: Path) -> bool:
    """Whether files can be written in a folder, which is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def named_cache(key: str, folder: Path) -> Path:
    """A folder that the configuration names, made if it does not exist, and then not for everyone to write.

    Args:
        key: the key that names it, for the message.
        folder: the folder.

    Raises:
        ConfigError: everyone can write there.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o775, parents=True, exist_ok=True)
    if is_everyones(folder):
        raise ConfigError(
            f"{key}: every user of this machine can write into {folder}, and so decide what is read from there; give a "
            f"folder in it, such as {folder / 'mine'}, or chmod o-w {folder}"
        )
    return folder


def is_unused(file: Path) -> bool:
    """Whether a file was neither written nor marked as used for so long that it is to be removed.

    Raises:
        OSError: the file is gone.
    """
    return file.stat().st_mtime < time.time() - DAYS * 24 * 3600
