"""Checksums of the files in a checkpoint's folder: whatever has changed since it was written is named.

A folder with `checksums.json` has the size of each of its files and XXH3, with 64 bits, of each 32 MiB of it, and that
of its own list. A folder within it that has such a file itself, as the training state has, counts as a folder of its
own. They find damage, not forgery: who can change a file can change its checksum too.

Those of tensors are computed from the memory that is written: so they also find what went wrong on the way to the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from reallm.atomic_files import reraise
from reallm.checkpoint.hashing import Checksum, checksums_of
from reallm.errors import CheckpointError, quoted
from reallm.foreign_files import parse_json, read_bytes, reading
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json, fail_together, is_leader

CHECKSUMS = "checksums.json"
_FORMAT = 2
_ALL_LISTED = (".safetensors", ".json", ".jinja")
"""Suffixes of files that could change what is read of a folder: one that is not in its list is an error."""


@dataclass(frozen=True)
class Compared:
    """What was compared with checksums, all of which fits."""

    n_bytes: int
    """Number of bytes of all files."""
    without: tuple[Path, ...]
    """The folders without checksums, as those of earlier versions are."""


def write_checksums(
    folder: Path, known: Mapping[Path, Checksum], inner: Sequence[str] = (), mesh: Mesh | None = None
) -> None:
    """Write the checksums of all files in a folder.

    Args:
        folder: the folder; its files are complete.
        known: the checksums of files that this process has written; others are read.
        inner: folders in it that get checksums of their own, if they exist.
        mesh: mesh of the ranks that have written the files, all of which call this; None: this process is alone.
    """
    found = dict(known)
    if mesh is not None and mesh.layout.size > 1:
        by_name = {path.relative_to(folder).as_posix(): one for path, one in known.items()}
        by_rank = all_gather_json(by_name, mesh.all).values()
        found = {folder / name: Checksum(size, tuple(parts)) for one in by_rank for name, (size, parts) in one.items()}
    with fail_together(mesh):
        if is_leader(mesh):
            tops = [folder, *(folder / name for name in inner if (folder / name).is_dir())]
            files = {top: _files(top, tops) for top in tops}
            found |= checksums_of([path for paths in files.values() for path in paths if path not in found])
            for top, paths in files.items():
                _write(top, {path.relative_to(top).as_posix(): found[path] for path in paths})


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
    changed = [path for path, one in checksums_of(list(expected)[number::of]).items() if one != expected[path]]
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
