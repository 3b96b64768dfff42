"""Checksums of the files in a checkpoint's folder: whatever has changed since it was written is named.

A folder with `checksums.json` has the size of each of its files and XXH3, with 64 bits, of each 32 MiB of it, and that
of its own list. A folder within it that has such a file itself, as the training state has, counts as a folder of its
own. They find damage, not forgery: who can change a file can change its checksum too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_64, xxh3_64_hexdigest

from reallm.atomic_files import flush, reraise
from reallm.errors import CheckpointError, quoted
from reallm.foreign_files import parse_json, read_bytes, reading
from reallm.launch.cores import n_cores
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json, fail_together, is_leader

CHECKSUMS = "checksums.json"
_FORMAT = 2
_BLOCK = 1 << 20
_PART = 32 * _BLOCK
"""Bytes of a file that are read by one thread."""
_ALL_LISTED = (".safetensors", ".json", ".jinja")
"""Suffixes of files that could change what is read of a folder: one that is not in its list is an error."""


class Checksum(NamedTuple):
    """The checksum of a file."""

    size: int
    parts: tuple[str, ...]
    """XXH3 of each part of the file, in hexadecimal."""


@dataclass(frozen=True)
class Compared:
    """What was compared with checksums, all of which fits."""

    n_bytes: int
    """Number of bytes of all files."""
    without: tuple[Path, ...]
    """The folders without checksums, as those of earlier versions are."""


def write_checksums(folder: Path, inner: Sequence[str] = (), mesh: Mesh | None = None) -> None:
    """Write the checksums of all files in a folder, and make the files durable meanwhile.

    Args:
        folder: the folder; its files are complete.
        inner: folders in it that get checksums of their own, if they exist.
        mesh: mesh of the ranks that share the work, all of which call this; None: this process does it alone.
    """
    tops = [folder, *(folder / name for name in inner if (folder / name).is_dir())]
    files = [path for top in tops for path in _files(top, tops)]
    mine = files if mesh is None else files[mesh.layout.ranks.index(mesh.rank) :: mesh.layout.size]
    with fail_together(mesh):
        found = {path.relative_to(folder).as_posix(): one for path, one in _checksums(mine, durably=True)}
    if mesh is not None and mesh.layout.size > 1:
        by_rank = all_gather_json(found, mesh.all).values()
        found = {name: Checksum(size, tuple(parts)) for one in by_rank for name, (size, parts) in one.items()}
    with fail_together(mesh):
        if is_leader(mesh):
            for top in tops:
                names = {path: path.relative_to(folder).as_posix() for path in _files(top, tops)}
                _write(top, {path.relative_to(top).as_posix(): found[name] for path, name in names.items()})


def verify_checksums(folder: Path, inner: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> Compared:
    """Compare the files of a folder with their checksums.

    Args:
        folder: the folder.
        inner: folders in it that have checksums of their own, if they exist.
        share: which part of the files this process compares, as (number, number of parts).

    Raises:
        CheckpointError: a file is missing, was added or has changed; names the first of them and the remedy.
    """
    all_tops = [folder, *(folder / name for name in inner if (folder / name).is_dir())]
    tops = [top for top in all_tops if (top / CHECKSUMS).exists()]
    expected = {top / name: one for top in tops for name, one in _read(top).items()}
    for path, one in expected.items():
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {_remedy(path, tops)}")
        if path.stat().st_size != one.size:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, and had {one.size} when it was saved; {_remedy(path, tops)}"
            )
    for path in (path for top in tops for path in _files(top, all_tops)):
        if path not in expected and path.suffix in _ALL_LISTED:
            raise CheckpointError(f"{path} was not there when this was saved; {_remedy(path, tops, 'remove it')}")
    number, of = share
    changed = [path for path, one in _checksums(list(expected)[number::of]) if one != expected[path]]
    if changed:
        more = f" (and {quoted([path.name for path in changed[1:]], 3)})" if changed[1:] else ""
        raise CheckpointError(f"{changed[0]}{more} has other bytes than when it was saved; {_remedy(changed[0], tops)}")
    return Compared(sum(one.size for one in expected.values()), tuple(top for top in all_tops if top not in tops))


def _remedy(path: Path, tops: Sequence[Path], usual: str = "copy it again") -> str:
    top = next(top for top in reversed(tops) if path.is_relative_to(top))
    return f"{usual}, or, if you changed it yourself, remove {top / CHECKSUMS}"


def _files(top: Path, tops: Sequence[Path]) -> list[Path]:
    """The files of a folder and of its folders, without the checksums and without other `tops`."""
    found: list[Path] = []
    for folder, folders, names in os.walk(top, onerror=reraise):
        folders[:] = sorted(name for name in folders if Path(folder, name) not in tops)
        found += [Path(folder, name) for name in sorted(names) if name != CHECKSUMS]
    return found


def _checksums(paths: Sequence[Path], *, durably: bool = False) -> Iterator[tuple[Path, Checksum]]:
    """The checksums of files, computed in other threads; `durably` flushes them to disk meanwhile."""
    with ThreadPoolExecutor(min(4, n_cores())) as pool:
        sizes = [path.stat().st_size for path in paths]
        parts = [pool.map(partial(_part, path), range(0, size, _PART)) for path, size in zip(paths, sizes, strict=True)]
        if durably:
            for path in paths:
                flush(path)
        for path, size, found in zip(paths, sizes, parts, strict=True):
            yield path, Checksum(size, tuple(found))


def _part(path: Path, start: int) -> str:
    part, block, rest = xxh3_64(), memoryview(bytearray(_BLOCK)), _PART
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while rest and (n := file.readinto(block[: min(rest, _BLOCK)])):
            part.update(block[:n])
            rest -= n
    return part.hexdigest()


def _write(top: Path, checksums: Mapping[str, Checksum]) -> None:
    files = {name: {"size": one.size, "xxh3": [*one.parts]} for name, one in checksums.items()}
    (top / CHECKSUMS).write_bytes(_text(files))


def _read(top: Path) -> dict[str, Checksum]:
    path, remedy = top / CHECKSUMS, "copy it again, or remove it to go on without"
    with reading(path, remedy, problem="is damaged"):
        text = read_bytes(path)
        content = parse_json(text)
        files = content["files"]
        if content["format"] == 1:
            raise ValueError("it was written by an earlier version")
        if text != _text(files):
            raise ValueError("it does not fit its own checksum")
        return {name: Checksum(one["size"], tuple(one["xxh3"])) for name, one in _plain(files.items())}


def _plain(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The items, with paths that stay in their folder."""
    for name, one in items:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"'{name}' is outside of the folder")
        yield name, one


def _text(files: Mapping[str, Any]) -> bytes:
    """The whole file with a list; what was read is compared with it, byte by byte."""
    xxh3 = xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())
    return (json.dumps({"format": _FORMAT, "files": files, "xxh3": xxh3}, indent=1) + "\n").encode()
