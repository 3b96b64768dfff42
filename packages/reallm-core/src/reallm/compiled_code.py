"""The folder of torch's compiler, from which it loads code and pickles. Imports no torch.

It is `torchinductor_<user>` in the folder of temporary files, made when the compiler is imported: a name that everyone
knows, and can take first.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from reallm.data.cache_folder import cache_folder
from reallm.errors import ConfigError

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def use_own_folder() -> None:
    """Have torch use a folder in the user's cache if the usual one is somebody else's; called before it is imported."""
    with suppress(OSError):  # there is no folder of temporary files
        if _VARIABLE not in os.environ and not _is_own(_usual_folder()):
            os.environ[_VARIABLE] = str(cache_folder("compiled"))


def check_own_folder() -> None:
    """Check that the usual folder is this user's, and make it if it does not exist: torch has headers there always.

    Raises:
        ConfigError: somebody else has made it.
    """
    folder = _usual_folder()
    if not _is_own(folder):
        raise ConfigError(
            f"model.compile=true: torch would compile code from {folder}, which is not yours; have it removed, set "
            "TMPDIR to a folder of your own, or leave model.compile out"
        )
    folder.mkdir(mode=0o700, exist_ok=True)


def _usual_folder() -> Path:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid_{os.geteuid()}"
    return Path(tempfile.gettempdir(), f"torchinductor_{user}")


def _is_own(folder: Path) -> bool:
    """Whether a folder is this user's, or can be."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and folder.lstat().st_uid == folder.stat().st_uid == os.geteuid()
