"""Where rows come from: files of several formats, or a function. Raw records with their place. Imports no torch."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from reallm.errors import DataError, did_you_mean

Builder: TypeAlias = Callable[[], Iterable[Mapping[str, Any]]]
Source: TypeAlias = "str | Path | Builder"

_REFERENCE = re.compile(r"(?P<module>.+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<name>[A-Za-z_]\w*)")
_BETWEEN = re.compile(r"[\s,]*")
_BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """What was read: a value, its place for messages (`data/a.jsonl:12`), and its position for ids (`a.jsonl:12`)."""

    value: Any
    place: str
    position: str


def records(source: Source) -> Iterator[Record]:
    """The records of a file, of a function, or of the function that `"module:function"` names.

    Raises:
        DataError: if the source cannot be found or read.
    """
    if callable(source):
        name = getattr(source, "__qualname__", type(source).__name__)
        return _numbered(_built(source, name), name)
    if not str(source):
        raise DataError("no data file is given: the path is empty")
    path = Path(source).expanduser()
    reference = _REFERENCE.fullmatch(str(source))
    if reference and not path.exists():
        return _numbered(_built(_load(reference["module"], reference["name"]), str(source)), str(source))
    for extension, read in _READERS.items():
        if path.name.lower().endswith(extension):
            _check_file(path)
            return _read(path, read)
    _check_file(path)
    wanted = f"{', '.join(_READERS)}, or a function as module:function"
    raise DataError(f"{source}: unknown extension '{path.suffix}', wanted {wanted}")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder, wanted a file ({', '.join(_READERS)})")
    if not path.exists():
        hint = ""
        if path.parent.is_dir():
            hint = did_you_mean(path.name, (entry.name for entry in path.parent.iterdir()))
        raise DataError(f"{path}: no such file{hint or f' (looked in {path.parent.resolve()})'}")


def _read(path: Path, read: Callable[[Path], Iterator[Record]]) -> Iterator[Record]:
    try:
        yield from read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _record(path: Path, line: int, value: Any) -> Record:
    return Record(value, f"{path}:{line}", f"{path.name}:{line}")


def _json(path: Path) -> Iterator[Record]:
    """The elements of a list, each with the line it starts on."""
    text = "".join(_text(raw, path, number) for number, raw in enumerate(_lines(path.open("rb")), 1))
    if not text.strip():
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise _not_json(f"{path}:{line}", error) from error
    if not isinstance(whole, list):
        raise DataError(f"{path}: wanted a list of objects: [{{...}}, ...]; one object a line is .jsonl")
    # It is valid, so that a second pass needs only to step over what lies between the elements to learn their lines.
    decoder, line, counted, at = json.JSONDecoder(), 1, 0, text.index("[") + 1
    for _ in whole:
        between = _BETWEEN.match(text, at)
        assert between is not None
        line, counted = line + text.count("\n", counted, between.end()), between.end()
        value, at = decoder.raw_decode(text, between.end())
        yield _record(path, line, value)


def _jsonl(path: Path) -> Iterator[Record]:
    return _json_lines(path, path.open("rb"))


def _jsonl_gz(path: Path) -> Iterator[Record]:
    try:
        with gzip.open(path, "rb") as file:
            yield from _json_lines(path, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from error


def _json_lines(path: Path, file: Any) -> Iterator[Record]:
    for number, raw in enumerate(_lines(file), 1):
        text = _text(raw, path, number).strip()
        if not text:
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _not_json(f"{path}:{number}", error) from error
        yield _record(path, number, value)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    # Cut as bytes, at \n alone: text may hold other characters that Python counts as ends of lines (U+2028).
    with file:
        for number, line in enumerate(file):
            yield line.removeprefix(_BOM) if number == 0 else line


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


def _parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install 'reallm-core[parquet]'") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(value, f"{path}, row {number}", f"{path.name}:{number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a whole parquet file: {_one_line(error)}") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".json": _json,
    ".parquet": _parquet,
}
"""File extension -> reader. Rows are numbered from 1: by line, by row in parquet."""


def _load(module: str, name: str) -> Builder:
    """The function `name` of an importable module, or of a Python file.

    Naming it in a configuration runs its code, as importing it does: it is the user's own. No data file can name one.
    """
    source = f"{module}:{name}"
    try:
        loaded = _load_file(Path(module).expanduser()) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:  # any code of the user's runs here, and whatever it raises is the user's to see
        hint = "; a file is given as path/to/file.py:function" if isinstance(error, ModuleNotFoundError) else ""
        raise DataError(
            f"{source}: cannot import '{module}': {type(error).__name__}: {_one_line(error)}{hint}"
        ) from error
    function = getattr(loaded, name, None)
    if not callable(function):
        problem = f"has no function '{name}'{did_you_mean(name, vars(loaded))}" if function is None else "no function"
        raise DataError(f"{source}: '{module}' {problem}")
    return function


def _load_file(path: Path) -> ModuleType:
    name = f"reallm_rows_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import does: dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _built(build: Builder, name: str) -> Iterator[Any]:
    try:
        built = build()
        if isinstance(built, str | bytes | Mapping) or not isinstance(built, Iterable):
            raise DataError(f"{name}: returned a {type(built).__name__}, wanted an iterable of mappings, one a row")
        yield from built
    except DataError:
        raise
    except Exception as error:  # the user's own code may raise anything; say whose it is
        raise DataError(f"{name}: raised {type(error).__name__}: {_one_line(error)}") from error


def _numbered(values: Iterator[Any], name: str) -> Iterator[Record]:
    for number, value in enumerate(values, 1):
        yield Record(value, f"{name}, row {number}", f"{name}:{number}")
