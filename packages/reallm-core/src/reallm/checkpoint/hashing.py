"""Checksums of single files: XXH3, with 64 bits, of each 32 MiB, while they are written or of those that are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_64

from reallm.launch.cores import n_cores
from reallm.machine_errors import naming

_BLOCK = 1 << 20
_PART = 32 * _BLOCK
"""Bytes of a file that have a checksum of their own, so that threads can share the work."""


class Checksum(NamedTuple):
    """The checksum of a file."""

    size: int
    parts: tuple[str, ...]
    """XXH3 of each part of the file, in hexadecimal."""


Checksums = dict[Path, Checksum]
"""The checksums of files, by their paths."""


def write_with_checksum(path: Path, pieces: Sequence[memoryview]) -> Checksum:
    """Write a file, and compute the checksum of its pieces in another thread meanwhile.

    The thread does not keep step with the writing: two cores that read the same memory at once hold each other up.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        parts = pool.submit(_xxh3_of_parts, pieces)
        file.writelines(pieces)
        return Checksum(sum(map(len, pieces)), parts.result())


def checksums_of(paths: Sequence[Path]) -> Checksums:
    """The checksums of files, which are read in other threads."""
    with ThreadPoolExecutor(min(4, n_cores())) as pool:
        sizes = [path.stat().st_size for path in paths]
        parts = [pool.map(partial(_part, path), range(0, size, _PART)) for path, size in zip(paths, sizes, strict=True)]
        found = (Checksum(size, tuple(of_file)) for size, of_file in zip(sizes, parts, strict=True))
        return dict(zip(paths, found, strict=True))


def _part(path: Path, start: int) -> str:
    part, block, rest = xxh3_64(), memoryview(bytearray(_BLOCK)), _PART
    with naming(path), path.open("rb", buffering=0) as file:
        file.seek(start)
        while rest and (n := file.readinto(block[: min(rest, _BLOCK)])):
            part.update(block[:n])
            rest -= n
    return part.hexdigest()


def _xxh3_of_parts(pieces: Iterable[memoryview]) -> tuple[str, ...]:
    """XXH3 of each part of a file, given its pieces in order."""
    parts, size = list[xxh3_64](), 0
    for piece in pieces:
        rest = piece
        while rest:
            if size % _PART == 0:
                parts.append(xxh3_64())
            now = rest[: _PART - size % _PART]
            parts[-1].update(now)
            rest, size = rest[len(now) :], size + len(now)
    return tuple(part.hexdigest() for part in parts)
