"""Reads rows of Arrow tables: parquet, Arrow files, and folders that the `datasets` library has saved.

All rows of a table have all keys, also within structs, so those that a row lacks are null. These nulls are removed
again: in a column of structs, `{"x": 1, "y": null}` is `{"x": 1}`. Values that the table keeps as JSON text, because
those of different rows are too unlike for one type, are parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reallm.data.readers.record import Origin, Records
from reallm.errors import DataError, quoted
from reallm.foreign_files import parse_json, read_json_object, reading

_BATCH_SIZE = 1024
_FILE_FORMAT = b"ARROW1"


def check_pyarrow(path: Path, origin: Origin) -> None:
    """Raise DataError if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        kind = "parquet" if path.suffix.lower() == ".parquet" else "Arrow files"
        raise DataError(f"{origin.place}: reading {kind} needs pyarrow: pip install 'reallm-core[parquet]'")


def read_parquet(path: Path, origin: Origin) -> Records:
    """Rows of a parquet file."""
    import pyarrow.parquet

    with path.open("rb"):  # an error of the system is raised here, where it is told apart
        pass
    with (
        reading(origin.place, error=DataError, problem="cannot be read as a parquet file"),
        pyarrow.parquet.ParquetFile(path) as file,
    ):
        yield from table_records(file.iter_batches(_BATCH_SIZE), origin)


def read_arrow(path: Path, origin: Origin) -> Records:
    """Rows of an Arrow file, in the file or the stream format; those of the `datasets` library are streams."""
    import pyarrow

    with path.open("rb") as file:
        is_stream = file.read(len(_FILE_FORMAT)) != _FILE_FORMAT
    with (
        reading(origin.place, error=DataError, problem="cannot be read as an Arrow file"),
        pyarrow.memory_map(str(path)) as source,
    ):
        yield from table_records(_batches(source, is_stream), origin)


def _batches(source: Any, is_stream: bool) -> Iterator[Any]:
    import pyarrow.ipc

    if is_stream:
        yield from pyarrow.ipc.open_stream(source)
        return
    file = pyarrow.ipc.open_file(source)
    for i in range(file.num_record_batches):
        yield file.get_batch(i)


def table_records(batches: Iterable[Any], origin: Origin) -> Records:
    """The records of Arrow tables or batches of them."""
    number = 0
    for batch in batches:
        restore = {field.name: _restorer(field.type) for field in batch.schema}
        for row in batch.to_pylist():
            number += 1
            yield origin.at_row(
                number,
                {
                    key: value if value is None or (restored := restore[key]) is None else restored(value)
                    for key, value in row.items()
                },
            )


def _restorer(kind: Any) -> Callable[[Any], Any] | None:
    """A function that gives a value of an Arrow type as it was before it came into a table; None if it is the same."""
    import pyarrow.types as types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return parse_json
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _restorer(kind.value_type)
        return item and (lambda values: [one if one is None else item(one) for one in values])
    if types.is_struct(kind):
        inner = {field.name: _restorer(field.type) for field in kind}
        return lambda value: {
            key: item if (restored := inner[key]) is None else restored(item)
            for key, item in value.items()
            if item is not None
        }
    return None


def without_nulls(value: Any) -> Any:
    """`value` without the keys of objects, at any depth, whose value is null; elements of lists stay.

    >>> without_nulls([{"x": 1, "y": None}, None])
    [{'x': 1}, None]
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def saved_dataset(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that the `datasets` library has saved, in order; None for any other folder.

    Raises:
        DataError: the folder holds several splits, or is not whole.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        with reading(splits, error=DataError):
            names = [str(name) for name in read_json_object(splits, error=DataError).get("splits", [])]
        example = f": {folder / names[0]}" if names else ""
        raise DataError(f"{folder}: holds the splits {quoted(names, 8)} of a dataset; choose one{example}")
    state = folder / "state.json"
    if not state.is_file():
        return None
    with reading(state, error=DataError):
        content = read_json_object(state, error=DataError)
        if content.get("_indices_data_files"):
            raise DataError(f"{folder}: saved by an old version of datasets; load and save it with a current one")
        names = [str(file["filename"]) for file in content.get("_data_files", [])]
    if any(Path(name).name != name for name in names):
        raise DataError(f"{state}: names a file outside the folder")
    return [folder / name for name in names]
