"""A hash of Python sources, for what is kept only as long as the code that made it stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def source_hash(places: Iterable[Path]) -> str:
    """SHA-256 of Python files: of those that are given, and of those in folders. The same wherever they are installed.

    Raises:
        OSError: a file cannot be read.
    """
    return hashlib.sha256("".join(sorted(map(_hash_of_place, places))).encode()).hexdigest()


def _hash_of_place(place: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(place.parent).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()
