"""A row: one object of a data file, with checked access to its values. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reallm.data.row_errors import RowError
from reallm.errors import cut

Kind = type | tuple[type, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file: its values, its id, and its location (`train.jsonl:12`) for messages.

    A key with the value null counts as absent, because tables export missing keys as null.

    Args:
        id: its value of `id`, or its position.
        place: its location.
        values: its values.
        index: number of objects before it in its source, wrong ones included.
        names: key -> the key that the file has for it, if that is another one; errors name the file's.
        converted_from: the values before they got the format that datasets read; None: they had it.
    """

    id: str
    place: str
    values: Mapping[str, Any] = field(repr=False)
    index: int = 0
    names: Mapping[str, str] = field(default_factory=dict, repr=False)
    converted_from: Mapping[str, Any] | None = field(default=None, repr=False)

    def __contains__(self, key: object) -> bool:
        return self.values.get(key) is not None  # type: ignore[call-overload]

    @property
    def original(self) -> Mapping[str, Any]:
        """The values that the row has in its file, with columns renamed, whatever format datasets read it in."""
        return self.values if self.converted_from is None else self.converted_from

    def error(self, problem: str) -> RowError:
        """An error about this row, for the caller to raise: `raise row.error("prompt is ...")`."""
        return RowError(f"{self.place}: {problem}")

    def name(self, key: str) -> str:
        """The key that the file has for `key`."""
        return self.names.get(key, key)

    def need_one_of(self, *keys: str) -> None:
        """Raise DataError unless the row has one of the keys."""
        if not any(key in self for key in keys):
            wanted = " or ".join(f"'{self.name(key)}'" for key in keys)
            raise self.error(f"found no such key{self.listed_keys()}, wanted {wanted}")

    def get(self, key: str, kind: Kind, wanted: str = "") -> Any:
        """The value of `key`, checked to be of type `kind`.

        Raises:
            DataError: the value is missing or of another type; names the location, the value found and what is
                `wanted`.
        """
        value = self.values.get(key)
        if value is None:
            found = "null" if key in self.values else f"no such key{self.listed_keys()}"
        elif _is(value, kind):
            return value
        else:
            found = describe(value)
        raise self.error(f"key '{self.name(key)}': found {found}, wanted {wanted or _kind_text(kind)}")

    def text(self, key: str) -> str:
        """The text of `key`; it may be empty. Raises DataError as `get` does, and for broken Unicode."""
        return self.valid_text(self.get(key, str), f"key '{self.name(key)}'")

    def texts(self, key: str) -> list[str]:
        """The non-empty list of texts of `key`. Raises DataError as `get` does."""
        wanted = "a list of texts"
        texts = self.get(key, list, wanted)
        if not texts:
            raise self.error(f"key '{self.name(key)}': found an empty list, wanted {wanted}")
        for i, value in enumerate(texts):
            if not isinstance(value, str):
                raise self.error(f"key '{self.name(key)}[{i}]': found {describe(value)}, wanted text")
        return [self.valid_text(value, f"key '{self.name(key)}[{i}]'") for i, value in enumerate(texts)]

    def valid_text(self, value: str, name: str) -> str:
        """`value`, which `name` describes in the error. Raises DataError if it is not valid Unicode."""
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can hold half a character, as in "\ud83d"; tokenizers refuse it
            broken = ascii(value[error.start])
            raise self.error(f"{name}: found half of a surrogate pair ({broken}), wanted valid Unicode text") from None
        return value

    def text_in(self, values: Mapping[str, Any], key: str, name: str) -> str:
        """The text of `key` of an object within the row; errors call the object `name`. Raises DataError."""
        value = values.get(key)
        if isinstance(value, str):
            return self.valid_text(value, f"key '{name}.{key}'")
        found = describe(value) if key in values else f"no such key{listed_keys(values)}"
        raise self.error(f"key '{name}.{key}': found {found}, wanted text")

    def listed_keys(self) -> str:
        """`" (keys: 'a', 'b')"`: the keys that the row has in the file."""
        return listed_keys([self.name(key) for key, value in self.values.items() if value is not None])


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
    shown = cut(repr(value), 40)
    if isinstance(value, str):
        return f"text ({shown})"
    return f"a number ({shown})" if isinstance(value, int | float) else f"a {type(value).__name__} ({shown})"


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
