"""Reads raw records, with their locations, from files of several formats or from a function. Imports no torch."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from reallm.errors import DataError, did_you_mean

Builder: TypeAlias = Callable[[], Iterable[Mapping[str, Any]]]
Records: TypeAlias = "Generator[Record, None, None]"
Source: TypeAlias = "str | Path | Builder | RowSource"

_REFERENCE = re.compile(r"(?P<module>.+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<name>[A-Za-z_]\w*)")
_BETWEEN = re.compile(r"[\s,]*")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowSource:
    """Where rows come from, the form that they have there, and the names of their columns.

    Args:
        path: a path or a function, as `reallm.data.rows.read_rows` takes it.
        format: name of the form of the rows; None: recognised by the keys of the first ones.
        columns: key that is wanted -> the key that the rows have for it: `{"prompt": "question"}`.
    """

    path: str | Path | Builder
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(getattr(self.path, "__qualname__", self.path))


class Record(NamedTuple):
    """A value that was read, its place for messages (`data/a.jsonl:12`), and its position for ids (`a.jsonl:12`)."""

    value: Any
    place: str
    position: str


def records(source: Source) -> Records:
    """The records of a file, of a function, or of the function that `"module:function"` names.

    Raises:
        DataError: the source cannot be found or read.
    """
    return _opener(source)()


def check_source(source: Source) -> None:
    """Check that the file exists and has a known format, without reading it or running the function.

    Raises:
        DataError: the file does not exist, or has an unknown format.
    """
    _opener(source)


def _opener(source: Source) -> Callable[[], Records]:
    """A function that reads the source."""
    if isinstance(source, RowSource):
        return _opener(source.path)
    if callable(source):
        return partial(_built, source, getattr(source, "__qualname__", type(source).__name__))
    if not str(source):
        raise DataError("no data file is given: the path is empty")
    path = Path(source).expanduser()
    reference = _REFERENCE.fullmatch(str(source))
    if reference and not path.exists():
        if reference["module"].endswith(".py"):
            _check_file(Path(reference["module"]).expanduser())
        return partial(_referenced, reference["module"], reference["name"])
    _check_file(path)
    for extension, read in _READERS.items():
        if path.name.lower().endswith(extension):
            if read is _parquet and find_spec("pyarrow") is None:
                raise DataError(f"{path}: reading parquet needs pyarrow: pip install 'reallm-core[parquet]'")
            return partial(_read, path, read)
    wanted = f"{', '.join(_READERS)}, or a function as module:function"
    raise DataError(f"{path}: unknown extension '{path.suffix}', wanted {wanted}")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder, wanted a file ({', '.join(_READERS)})")
    if not path.exists():
        hint = ""
        if path.parent.is_dir():
            hint = did_you_mean(path.name, (entry.name for entry in path.parent.iterdir()))
        raise DataError(f"{path}: no such file{hint or f' (looked in {path.parent.resolve()})'}")


def _read(path: Path, read: Callable[[Path], Records]) -> Records:
    try:
        yield from read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _record(path: Path, line: int, value: Any, nth: int = 1) -> Record:
    """A record; `nth` numbers those that begin on the same line: `12`, `12#2`, ..."""
    place = str(line) if nth == 1 else f"{line}#{nth}"
    return Record(value, f"{path}:{place}", f"{path.name}:{place}")


def _json(path: Path) -> Records:
    """The elements of a list, each with the line on which it starts."""
    with path.open("rb") as file:
        text = "".join(_text(raw, path, number) for number, raw in _lines(file))
    if not text.strip():
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise _not_json(f"{path}:{line}", error) from error
    if not isinstance(whole, list):
        raise DataError(f"{path}: wanted a list of objects: [{{...}}, ...]; one object a line is .jsonl")
    # A second pass finds the line of each element. The text is known to be valid, so it need not check separators.
    decoder, line, counted, at, nth = json.JSONDecoder(), 1, 0, text.index("[") + 1, 0
    for _ in whole:
        between = _BETWEEN.match(text, at)
        assert between is not None
        n_newlines = text.count("\n", counted, between.end())
        line, counted, nth = line + n_newlines, between.end(), 1 if n_newlines else nth + 1
        value, at = decoder.raw_decode(text, between.end())
        yield _record(path, line, value, nth)


def _jsonl(path: Path) -> Records:
    with path.open("rb") as file:
        yield from _json_lines(path, file)


def _jsonl_gz(path: Path) -> Records:
    try:
        with gzip.open(path, "rb") as file:
            yield from _json_lines(path, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from error


def _json_lines(path: Path, file: Iterable[bytes]) -> Records:
    for number, raw in _lines(file):
        text = _text(raw, path, number).strip()
        if not text:
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _not_json(f"{path}:{number}", error) from error
        yield _record(path, number, value)


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    # Split bytes, at \n only: str.splitlines would also split at characters such as U+2028 within text.
    for number, line in enumerate(file, 1):
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _text(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise DataError(
            f"{path}:{line}: found the byte 0x{byte:02x} at column {error.start + 1}, wanted UTF-8 text; "
            "convert the file to UTF-8"
        ) from None


def _not_json(place: str, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{place}: invalid JSON: {error.msg} at column {error.colno}")
    if isinstance(error, RecursionError):
        return DataError(f"{place}: invalid JSON: nested too deeply")
    return DataError(f"{place}: invalid JSON: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parquet(path: Path) -> Records:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(value, f"{path}, row {number}", f"{path.name}:{number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a whole parquet file: {_one_line(error)}") from error


_READERS: Mapping[str, Callable[[Path], Records]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".json": _json,
    ".parquet": _parquet,
}
"""File extension -> reader. Rows are numbered from 1: by line, by row in parquet."""


def _load(module: str, name: str) -> Builder:
    """The function `name` of an importable module, or of a Python file.

    Naming a function in a configuration runs its code, as an import would: it is the user's code. Data files cannot
    name one.
    """
    source = f"{module}:{name}"
    try:
        loaded = _load_file(Path(module).expanduser()) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:  # this runs the user's code, which may raise anything
        hint = "; a file is given as path/to/file.py:function" if isinstance(error, ModuleNotFoundError) else ""
        raise DataError(
            f"{source}: cannot import '{module}': {type(error).__name__}: {_one_line(error)}{hint}"
        ) from error
    if not hasattr(loaded, name):
        raise DataError(f"{source}: '{module}' has no function '{name}'{did_you_mean(name, vars(loaded))}")
    function = getattr(loaded, name)
    if not callable(function):
        raise DataError(f"{source}: '{name}' of '{module}' is no function")
    return function


def _load_file(path: Path) -> ModuleType:
    name = f"reallm_rows_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # as an import does: dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _referenced(module: str, name: str) -> Records:
    return _built(_load(module, name), f"{module}:{name}")


def _built(build: Builder, name: str) -> Records:
    try:
        built = build()
        if isinstance(built, str | bytes | Mapping) or not isinstance(built, Iterable):
            raise DataError(f"{name}: returned a {type(built).__name__}, wanted an iterable of mappings, one a row")
        for number, value in enumerate(built, 1):
            yield Record(value, f"{name}, row {number}", f"{name}:{number}")
    except DataError:
        raise
    except Exception as error:  # the user's code may raise anything; name it
        raise DataError(f"{name}: raised {type(error).__name__}: {_one_line(error)}") from error
