"""Where rows come from: files of several formats, folders, the hub, functions and lists. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

from reallm.arguments import as_path
from reallm.data.readers.files import check_exists, files_of, reader_of
from reallm.data.readers.functions import Builder, read_function, read_list, read_reference
from reallm.data.readers.hub import PREFIX, HubSplit, read_hub
from reallm.data.readers.record import Origin, Records
from reallm.data.row_formats.formats import check_format
from reallm.data.row_split import RowSplit
from reallm.errors import DataError, kind_of
from reallm.foreign_files import reading
from reallm.git_lfs import is_lfs_pointer, lfs_pointer_problem
from reallm.references import FUNCTION

Rows: TypeAlias = "str | Path | Builder | Sequence[str | Path] | Sequence[Mapping[str, Any]]"
Source: TypeAlias = "Rows | RowSource"


@dataclass(frozen=True)
class RowSource:
    """Where rows come from, the format that they have there, and the names of their columns.

    Args:
        path: what has the rows, as `reallm.data.rows.iter_rows` takes it.
        format: format of the rows, a name in `reallm.data.row_formats.FORMATS`; None: recognised by the keys of the
            first rows.
        columns: key that the format has -> the key that the rows have for it: `{"prompt": "question"}`.
        split: the rows that are taken, after they have got their format; None: all.

    Raises:
        ConfigError: there is no such format.
    """

    path: Rows
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    split: RowSplit | None = None

    def __post_init__(self) -> None:
        if self.format is not None:
            check_format(self.format)

    @classmethod
    def of(cls, source: Source) -> RowSource:
        """The source itself, or the rows in a format that is recognised."""
        return source if isinstance(source, RowSource) else cls(source)

    def __str__(self) -> str:
        return source_name(self)


@dataclass(frozen=True)
class Part:
    """One file, function, list or split of the hub.

    Args:
        name: how messages call it.
        prefix: what its positions begin with; different in all parts of a source.
        read: function that reads it.
        file: the file, if it is one.
        is_quick: whether its first rows can be had without reading all of it, or running anything.
    """

    name: str
    prefix: str
    read: Callable[[], Records]
    file: Path | None = None
    is_quick: bool = False


def source_name(source: Source) -> str:
    """How messages call a source: `train.jsonl`, `a.jsonl and 3 more`, `module:function`, `a list of rows`."""
    path = RowSource.of(source).path
    if isinstance(path, str | Path):
        return str(path)
    if callable(path):
        return str(getattr(path, "__qualname__", type(path).__name__))
    if _is_paths(path):
        return f"{path[0]}{f' and {len(path) - 1:,} more' if len(path) > 1 else ''}"
    return "a list of rows"


def records(source: Source) -> Records:
    """The records of all parts of a source, in order.

    Raises:
        DataError: the source cannot be found or read.
    """
    return _chained(parts_of(source))


def parts_of(source: Source) -> list[Part]:
    """The parts of a source, in the order in which they are read. Nothing is read, and no function is run.

    Raises:
        DataError: a file does not exist or has an unknown extension, or a library is missing.
    """
    path = RowSource.of(source).path
    if isinstance(path, str | Path):
        return _named_parts([path])
    if callable(path):
        name = source_name(path)
        return [Part(name, name, partial(read_function, path, name))]
    if isinstance(path, list | tuple) and not path:
        raise DataError("no data file is given: the list is empty")
    if not hasattr(path, "__iter__") or not hasattr(path, "__len__") or isinstance(path, Mapping | bytes):
        raise DataError(f"path: found {kind_of(path)}, wanted a path, a list of paths, a function or a list of rows")
    if _is_paths(path):
        return _named_parts(path)
    return [Part("rows", "rows", partial(read_list, cast("Sequence[Mapping[str, Any]]", path)), is_quick=True)]


def check_source(source: Source) -> None:
    """Check that files exist and have known formats, and that needed libraries are installed, without reading any.

    Raises:
        DataError: something is missing or unknown.
    """
    parts_of(source)


def _is_paths(path: Any) -> TypeGuard[list[str | Path]]:
    return isinstance(path, list | tuple) and bool(path) and all(isinstance(one, str | Path) for one in path)


def _chained(parts: Sequence[Part]) -> Records:
    for part in parts:
        with closing(part.read()) as found:
            yield from found


def _named_parts(paths: Sequence[str | Path]) -> list[Part]:
    """The parts of paths; files get names that tell them apart."""
    found = [one for path in paths for one in _places(str(path))]
    files = [one for one in found if isinstance(one, Path)]
    for place, n in Counter(str(one) for one in found).items():
        if n > 1:
            raise DataError(f"{place}: given {n} times; its rows would have the same ids")
    names = Counter(file.name for file in files)
    root = Path(os.path.commonpath([file.resolve().parent for file in files])) if files else Path()
    return [_part(one, names, root) for one in found]


def _places(path: str) -> list[Path | str]:
    """The files of a path; or the path itself if it names a function or a dataset of the hub."""
    if not path:
        raise DataError("no data file is given: the path is empty")
    reference = FUNCTION.fullmatch(path)
    if path.startswith(PREFIX):
        return [path]
    if reference and not as_path(path, DataError).exists():
        if reference["module"].endswith(".py"):
            check_exists(as_path(reference["module"], DataError))
        return [path]
    return list(files_of(path))


def _part(place: Path | str, names: Mapping[str, int], root: Path) -> Part:
    if isinstance(place, Path):
        name = place.name if names[place.name] == 1 else place.resolve().relative_to(root).as_posix()
        origin = Origin(str(place), name)
        read = reader_of(place, origin)
        return Part(str(place), name, partial(_read_file, place, read, origin), file=place, is_quick=True)
    if place.startswith(PREFIX):
        return Part(place, place, partial(read_hub, HubSplit.of(place), Origin(place, place.removeprefix(PREFIX))))
    reference = FUNCTION.fullmatch(place)
    assert reference is not None
    return Part(place, place, partial(read_reference, reference["module"], reference["name"]))


def _read_file(path: Path, read: Callable[[Path, Origin], Records], origin: Origin) -> Records:
    if is_lfs_pointer(path):
        raise DataError(lfs_pointer_problem(path))
    with reading(path, error=DataError):
        yield from read(path, origin)
