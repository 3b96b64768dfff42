"""Records of layers of plugins for which the conformance kit has checked how tensor parallelism splits them.

Each is an empty file in the user's cache folder, named after a digest of the class and the code of its package, so that
changed code needs another check.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path


def record_split_checked(reference: str) -> None:
    """Record that the layer `"package.module:Class"` has passed; without a place to write to, do nothing."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
        path = _record(reference)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def is_split_checked(reference: str) -> bool:
    """Whether the layer has passed on this machine, and the code of its package has not changed since."""
    try:
        return _record(reference).exists()
    except (OSError, RuntimeError):
        return False


def _record(reference: str) -> Path:
    digest = hashlib.sha256(reference.encode())
    for file in sorted(_sources(reference.partition(":")[0].partition(".")[0])):
        digest.update(f" {file.name} ".encode() + file.read_bytes())
    return _cache() / "reallm" / "split-checked" / digest.hexdigest()


def _sources(package: str) -> Iterator[Path]:
    """The Python files of a package, or of a module that is in none."""
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations is not None:
        for folder in spec.submodule_search_locations:
            yield from Path(folder).rglob("*.py")
    elif spec is not None and spec.origin is not None:
        yield Path(spec.origin)


def _cache() -> Path:
    """The user's cache folder."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    return Path(stated) if stated else Path("~/.cache").expanduser()
