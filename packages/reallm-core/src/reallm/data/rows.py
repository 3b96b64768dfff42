"""Rows of training data with checked access to their values. Imports no torch.

    rows = read_rows("train.jsonl", required={"prompt": str})
    rows[0].text("prompt")

An error about a row reads `train.jsonl:12: key 'prompt': found a number (3), wanted text`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from reallm.data.readers.record import Record, Records
from reallm.data.row import Kind, Row, describe, listed_keys
from reallm.data.row_errors import RowErrors
from reallm.data.row_formats.formats import FORMATS, RowFormat, convert_like, recognise, unrecognised
from reallm.data.row_ids import RowIds
from reallm.data.row_sources import Part, RowSource, Source, parts_of, source_name
from reallm.errors import DataError
from reallm.notices import notify_once

__all__ = ["Kind", "Row", "check_rows", "describe", "iter_rows", "listed_keys", "read_rows"]

_N_FIRST = 100
"""How many of the first rows are looked at to recognise their format."""

_Checked = tuple[int, Row | DataError]  # the index of a row, and the row or what is wrong with it


def read_rows(source: Source, *, required: Mapping[str, Kind] | None = None) -> list[Row]:
    """All rows of a source, in order, as `iter_rows` gives them.

    Raises:
        DataError: the source cannot be read or has no rows, or rows are wrong; names the first one, and says how many
            more there are.
    """
    errors = RowErrors()
    rows = list(iter_rows(source, required=required, errors=errors))
    errors.check()
    return rows


def iter_rows(
    source: Source, *, required: Mapping[str, Kind] | None = None, errors: RowErrors | None = None
) -> Iterator[Row]:
    """The rows of a source, in order, read while they are used.

    A row's id is its value of `id` (text or a whole number), or else its position: `train.jsonl:12`. Of several files,
    it begins with the name of the file.

    Args:
        source: a file (`.jsonl`, `.json`, `.csv` or `.tsv`, which may be compressed as `.gz` or `.zst`; `.parquet`;
            `.arrow`), a folder or a pattern of files; `"hub:org/name:split"`; a function that takes no arguments and
            returns an iterable of mappings, or a reference to one: `"package.module:function"` or `"file.py:function"`;
            a list of mappings, or of any of the texts above. The rows are as they are there, or, if this is given in a
            `RowSource`, in the format that datasets read.
        required: key -> type of its value, for keys that every row must have.
        errors: collects the errors of wrong rows, which are left out; None: the first one is raised.

    Raises:
        DataError: the source cannot be read, has no rows, or has a wrong one; names the location.
    """
    row_source = RowSource.of(source)
    columns, split = row_source.columns, row_source.split
    absent = set(columns.values())
    parts = [replace(part, read=partial(_noting_keys, part.read, absent)) for part in parts_of(source)]
    n_rows = 0
    for part in parts:
        with closing(_rows_of(part, n_rows, source, required or {}, qualify=len(parts) > 1)) as found:
            for index, row in found:
                n_rows = max(n_rows, index + 1)
                if isinstance(row, Row):
                    if split is None or row in split:
                        yield row
                elif errors is None:
                    raise row
                else:
                    errors.add(index, row)
    if not n_rows:
        raise DataError(f"{source_name(source)}: has no rows")
    for key, column in columns.items():
        if column in absent:
            notify_once(f"{source_name(source)}: no row has the key '{column}', which dataset.columns.{key} names")


def _noting_keys(read: Callable[[], Records], absent: set[str]) -> Records:
    """The records that `read` gives; the keys that they have are taken out of `absent`."""
    with closing(read()) as records:
        for record in records:
            if absent and isinstance(record.value, Mapping):
                absent.difference_update(record.value)
            yield record


def check_rows(source: RowSource) -> None:
    """Check what can be checked of a source without reading much of it: its files, and the format of their first rows.

    Functions are not run and nothing is downloaded. What else may be wrong with a row is found when all are read.

    Raises:
        DataError: the source cannot be read, or the format of the rows is not recognised; names the location.
    """
    for part in parts_of(source):
        if part.is_quick and source.format is None:
            with closing(_as_they_are(part, 0, source, qualify=False)) as found:
                _, row_format = _recognised(found)
            if isinstance(row_format, DataError):
                raise row_format
            _notify(row_format, part)


def _rows_of(
    part: Part, start: int, source: Source, required: Mapping[str, Kind], *, qualify: bool
) -> Generator[_Checked, None, None]:
    """The rows of a part, whose indices begin at `start`."""
    ids = RowIds()
    found: Iterator[_Checked] = _as_they_are(part, start, source, qualify=qualify)
    if isinstance(source, RowSource):
        found = _converted(found, source, part)
    for index, row in found:
        checked = _with_required(row, required) if isinstance(row, Row) else row
        if isinstance(checked, Row):
            ids.add(checked.id, index)
        yield index, checked
    repeats = ids.repeats()
    error = _same_id(_as_they_are(part, start, source, qualify=qualify), *repeats[0], start) if repeats else None
    if error is not None:
        yield from ((index, error) for index, _ in repeats)


def _as_they_are(part: Part, start: int, source: Source, *, qualify: bool) -> Generator[_Checked, None, None]:
    """The rows of a part, with their columns renamed; an error that ends the reading is the last item."""
    columns = RowSource.of(source).columns
    prefix = f"{part.prefix}:" if qualify else ""
    index = start - 1
    try:
        with closing(part.read()) as records:
            for index, record in enumerate(records, start):
                try:
                    yield index, _row(record, index, columns, prefix)
                except DataError as error:
                    yield index, error
    except DataError as error:
        yield index + 1, error


def _row(record: Record, index: int, columns: Mapping[str, str], prefix: str) -> Row:
    if record.error is not None:
        raise record.error
    values = record.value
    if not isinstance(values, Mapping):
        raise DataError(f"{record.place}: found {describe(values)}, wanted an object such as {{...}}")
    if columns:
        renamed = {key: values[name] for key, name in columns.items() if name in values}
        values = {**{key: value for key, value in values.items() if key not in columns.values()}, **renamed}
    given = values.get("id")
    row_id = record.position if given is None else f"{prefix}{given}"
    row = Row(row_id, record.place, values, index, columns)
    if given is not None:
        row.get("id", (str, int))
    return row


def _with_required(row: Row, required: Mapping[str, Kind]) -> Row | DataError:
    """The row, or what is wrong with its required keys."""
    try:
        for key, kind in required.items():
            row.get(key, kind)
    except DataError as error:
        return error
    return row


def _same_id(found: Iterable[_Checked], repeat: int, first: int, start: int) -> DataError | None:
    """The error for the rows of these indices, whose ids have the same hash; None if the ids differ."""
    rows = {index: row for index, row in islice(found, repeat + 1 - start) if index in (repeat, first)}
    one, other = rows.get(repeat), rows.get(first)
    if not isinstance(one, Row) or not isinstance(other, Row) or one.id != other.id:
        return None
    shown = one.values.get("id") or one.id
    return one.error(f"key '{one.name('id')}': '{shown}' is already the id of {other.place}; ids must be unique")


def _converted(found: Iterator[_Checked], source: RowSource, part: Part) -> Iterator[_Checked]:
    """The rows in the format that datasets read."""
    if source.format is None:
        first, row_format = _recognised(found)
        if isinstance(row_format, DataError):
            wrong = next(i for i, (_, row) in enumerate(first) if isinstance(row, Row))
            yield from first[:wrong]
            yield first[wrong][0], row_format
            return
        _notify(row_format, part)
        found = chain(first, found)
        convert: Callable[[Row], Row] = partial(convert_like, row_format=row_format)
    else:
        convert = FORMATS[source.format].convert
    for index, row in found:
        try:
            yield index, convert(row) if isinstance(row, Row) else row
        except DataError as error:
            yield index, error


def _recognised(found: Iterator[_Checked]) -> tuple[list[_Checked], RowFormat | DataError]:
    """The first rows, and the format of the first one that has a known one; or the error if none has."""
    first: list[_Checked] = []
    for index, row in islice(found, _N_FIRST):
        first.append((index, row))
        row_format = recognise(row) if isinstance(row, Row) else None
        if row_format is not None:
            return first, row_format
    unknown = next((row for _, row in first if isinstance(row, Row)), None)
    return first, FORMATS["messages"] if unknown is None else unrecognised(unknown)


def _notify(row_format: RowFormat, part: Part) -> None:
    if not row_format.is_own:
        notify_once(f"{part.name}: rows look like {row_format.title}")
