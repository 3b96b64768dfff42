"""The files of a path: a file, a folder, or a pattern such as `data/*.jsonl`; and how each of them is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reallm.arguments import as_path
from reallm.data.readers.csv_rows import read_csv, read_tsv
from reallm.data.readers.json_rows import read_json, read_jsonl
from reallm.data.readers.record import Origin, Records
from reallm.data.readers.tables import check_pyarrow, read_arrow, read_parquet, saved_dataset
from reallm.data.readers.text_lines import COMPRESSIONS, check_compression
from reallm.errors import DataError, did_you_mean, quoted
from reallm.web_addresses import instead_of, is_web_address

Reader = Callable[[Path, Origin], Records]

TEXT_FORMATS: Mapping[str, Reader] = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".tsv": read_tsv}
"""Extension of a text file, which may be compressed -> its reader."""
TABLE_FORMATS: Mapping[str, Reader] = {".parquet": read_parquet, ".arrow": read_arrow}
"""Extension of a file of an Arrow table -> its reader."""
EXTENSIONS = (*TEXT_FORMATS, *TABLE_FORMATS)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WILDCARD = re.compile(r"[*?\[]")
_SPLIT = re.compile(r"(?:^|[-_.])(train|test|valid|validation|val|dev|eval)(?=[-_.])", re.IGNORECASE)


def files_of(path_text: str) -> list[Path]:
    """The files of a path or pattern, sorted by name.

    Raises:
        DataError: there is none, or a folder has several kinds of them.
    """
    if is_web_address(path_text):
        raise DataError(f"{path_text} is a web address, not a file; {instead_of(path_text, dataset=True)}")
    path = as_path(path_text, DataError)
    if path.is_dir():
        return saved_dataset(path) or _files_in(path)
    if not path.exists() and _WILDCARD.search(path_text):
        return _matching(path)
    check_exists(path)
    return [path]


def check_exists(path: Path) -> None:
    """Raise DataError unless there is such a file."""
    if path.exists():
        return
    hint = did_you_mean(path.name, (one.name for one in path.parent.iterdir())) if path.parent.is_dir() else ""
    if not hint and _HUB_ID.fullmatch(str(path)) and not path.parent.exists():
        hint = f"; a dataset of the hub is hub:{path}:train"
    raise DataError(f"{path}: no such file{hint or f' (looked in {path.parent.resolve()})'}")


def reader_of(path: Path, origin: Origin) -> Reader:
    """The function that reads a file, by its extension.

    Raises:
        DataError: the extension is unknown, or a library is missing.
    """
    extension, read = _format_of(path)
    if read is None:
        text, others = ", ".join(TEXT_FORMATS), ", ".join(TABLE_FORMATS)
        wanted = f"{text} (also with {' or '.join(COMPRESSIONS)}), {others}, or a function as module:function"
        raise DataError(f"{origin.place}: unknown extension '{path.suffix}', wanted {wanted}")
    if extension in TABLE_FORMATS:
        check_pyarrow(path, origin)
    check_compression(path, origin)
    return read


def _format_of(path: Path) -> tuple[str, Reader | None]:
    name = path.name.lower()
    for extension, read in TABLE_FORMATS.items():
        if name.endswith(extension):
            return extension, read
    for extension, read in TEXT_FORMATS.items():
        if name.endswith((extension, *(f"{extension}{compression}" for compression in COMPRESSIONS))):
            return extension, read
    return "", None


def _matching(pattern: Path) -> list[Path]:
    """The files that match a pattern."""
    n_fixed = next(i for i, part in enumerate(pattern.parts) if _WILDCARD.search(part))
    root = Path(*pattern.parts[:n_fixed])
    files = sorted(one for one in root.glob(str(Path(*pattern.parts[n_fixed:]))) if one.is_file())
    if not files:
        raise DataError(f"{pattern}: no file matches (looked in {root.resolve()})")
    return files


def _files_in(folder: Path) -> list[Path]:
    """The files of rows in a folder, which must be of one kind and of one split."""
    inside = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    files = [one for one in inside if one.is_file() and _format_of(one)[1] is not None]
    if not files:
        folders = [one.name for one in inside if one.is_dir()]
        has = f"; it has the folders {quoted(folders, 8)}" if folders else ""
        raise DataError(f"{folder}: a folder without data files ({', '.join(EXTENSIONS)}){has}")
    _check_one_kind(folder, sorted({_format_of(one)[0] for one in files}), "*{}*")
    splits = {match[1].lower() for one in files if (match := _SPLIT.search(one.name))}
    _check_one_kind(folder, sorted(splits), "{}*")
    return files


def _check_one_kind(folder: Path, kinds: Sequence[str], pattern: str) -> None:
    if len(kinds) > 1:
        chosen = folder / pattern.format("train" if "train" in kinds else kinds[0])
        raise DataError(f"{folder}: has files of several kinds, {quoted(kinds, 8)}; choose some of them: '{chosen}'")
