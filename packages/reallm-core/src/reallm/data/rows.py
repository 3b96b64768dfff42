"""Rows of training data with checked access to their values. Imports no torch.

    rows = read_rows("train.jsonl", required={"prompt": str})
    rows[0].text("prompt")

An error about a row reads `train.jsonl:12: key 'prompt': found a number (3), wanted text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from reallm.data.row_errors import RowError, RowErrors
from reallm.data.row_sources import Record, Source, records
from reallm.errors import DataError

Kind = type | tuple[type, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file: its values, its id, and its location (`train.jsonl:12`) for messages.

    `index` counts the objects of its source from 0, wrong ones included.

    A key with the value null counts as absent, because tables export missing keys as null.
    """

    id: str
    place: str
    values: Mapping[str, Any] = field(repr=False)
    index: int = 0

    def __contains__(self, key: object) -> bool:
        return self.values.get(key) is not None  # type: ignore[call-overload]

    def error(self, problem: str) -> RowError:
        """An error about this row, for the caller to raise: `raise row.error("prompt is ...")`."""
        return RowError(f"{self.place}: {problem}")

    def need_one_of(self, *keys: str) -> None:
        """Raise DataError unless the row has one of the keys."""
        if not any(key in self for key in keys):
            wanted = " or ".join(f"'{key}'" for key in keys)
            raise self.error(f"found no such key{self._keys()}, wanted {wanted}")

    def get(self, key: str, kind: Kind, wanted: str = "") -> Any:
        """The value of `key`, checked to be of type `kind`.

        Raises:
            DataError: the value is missing or of another type; names the location, the value found and what is
                `wanted`.
        """
        value = self.values.get(key)
        if value is None:
            found = "null" if key in self.values else f"no such key{self._keys()}"
        elif _is(value, kind):
            return value
        else:
            found = describe(value)
        raise self.error(f"key '{key}': found {found}, wanted {wanted or _kind_text(kind)}")

    def text(self, key: str) -> str:
        """The text of `key`; it may be empty. Raises DataError as `get` does, and for broken Unicode."""
        return self.valid_text(self.get(key, str), f"key '{key}'")

    def texts(self, key: str) -> list[str]:
        """The non-empty list of texts of `key`. Raises DataError as `get` does."""
        wanted = "a list of texts"
        texts = self.get(key, list, wanted)
        if not texts:
            raise self.error(f"key '{key}': found an empty list, wanted {wanted}")
        for i, value in enumerate(texts):
            if not isinstance(value, str):
                raise self.error(f"key '{key}[{i}]': found {describe(value)}, wanted text")
        return [self.valid_text(value, f"key '{key}[{i}]'") for i, value in enumerate(texts)]

    def valid_text(self, value: str, name: str) -> str:
        """`value`, which `name` describes in the error. Raises DataError if it is not valid Unicode."""
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can hold half a character, as in "\ud83d"; tokenizers refuse it
            broken = ascii(value[error.start])
            raise self.error(f"{name}: found half of a surrogate pair ({broken}), wanted valid Unicode text") from None
        return value

    def _keys(self) -> str:
        return listed_keys([key for key, value in self.values.items() if value is not None])


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

    A row's id is its value of `id` (text or a whole number), or else its position: `train.jsonl:12`.

    Args:
        source: a path to `.json` (a list of objects), `.jsonl`, `.jsonl.gz` or `.parquet`; a function that takes
            no arguments and returns an iterable of mappings; a reference to one: `"package.module:function"` or
            `"file.py:function"`; or one of these in a `RowSource`, which gives rows in a form that datasets know.
        required: key -> type of its value, for keys that every row must have.
        errors: collects the errors of wrong rows, which are left out; None: the first one is raised.

    Raises:
        DataError: the source cannot be read, has no rows, or has a wrong one; names the location.
    """
    places: dict[str, str] = {}
    index = -1
    with closing(records(source)) as found:
        for index, record in enumerate(found):
            try:
                row = _row(record, index)
                if row.id in places:
                    raise row.error(f"key 'id': '{row.id}' is already the id of {places[row.id]}; ids must be unique")
                places[row.id] = row.place
                for key, kind in (required or {}).items():
                    row.get(key, kind)
            except DataError as error:
                if errors is None:
                    raise
                errors.add(index, error)
            else:
                yield row
    if index < 0:
        raise DataError(f"{getattr(source, '__qualname__', source)}: has no rows")


def describe(value: Any) -> str:
    """Describe a value for a message, in JSON's terms and shortened: `a number (3)`, `text ('abc')`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, Mapping):
        return f"an object{listed_keys(value)}" if value else "an empty object"
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    if isinstance(value, str):
        return f"text ({shown})"
    return f"a number ({shown})" if isinstance(value, int | float) else f"a {type(value).__name__} ({shown})"


def _row(record: Record, index: int) -> Row:
    if not isinstance(record.value, Mapping):
        raise DataError(f"{record.place}: found {describe(record.value)}, wanted an object such as {{...}}")
    given = record.value.get("id")
    if given is not None and not _is(given, (str, int)):
        raise DataError(f"{record.place}: key 'id': found {describe(given)}, wanted text or a whole number")
    return Row(record.position if given is None else str(given), record.place, record.value, index)


def _is(value: Any, kind: Kind) -> bool:
    if isinstance(value, bool):  # bool is a subclass of int in Python, but not a number in JSON
        return kind is bool or (isinstance(kind, tuple) and bool in kind)
    return isinstance(value, kind)


_KIND_TEXTS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _kind_text(kind: Kind) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(_KIND_TEXTS.get(one, one.__name__) for one in kinds)


def listed_keys(keys: Iterable[Any]) -> str:
    """`" (keys: 'a', 'b')"`, of the first few keys."""
    names = [f"'{key}'" for key in keys]
    return f" (keys: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else " (it has none)"
