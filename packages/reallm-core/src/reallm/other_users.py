"""What other users of this machine may have made or can write, so that it is not taken for this user's own."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path


def user_name(number: int) -> str:
    """The name of a user, or `user 1000` if there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def is_everyones(folder: Path) -> bool:
    """Whether every user of the machine can make files in a folder, as in `/tmp`."""
    return bool(folder.stat().st_mode & stat.S_IWOTH)


def planted_by(path: Path) -> str | None:
    """The other user to whom something belongs that lies where everyone can put it; None if there is none.

    Where not everyone can write, those who can were let in, such as the host's user in a container.

    Raises:
        OSError: the path cannot be looked at.
    """
    if not os.path.lexists(path) or not is_everyones(path.parent):
        return None
    others = {path.lstat().st_uid, path.stat().st_uid} - {os.geteuid()}
    return user_name(others.pop()) if others else None
