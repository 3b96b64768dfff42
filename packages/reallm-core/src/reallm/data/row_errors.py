"""Collects the errors of wrong rows, so that the first in the order of the file is named, and the others counted."""

from __future__ import annotations

from reallm.errors import DataError, counted


class RowError(DataError):
    """A row is wrong; the message begins with its location."""


class RowErrors:
    """The errors of wrong rows: `train.jsonl:12: key 'answer': found null, wanted text (and 41 more rows)`."""

    def __init__(self) -> None:
        self._first: tuple[int, DataError] | None = None
        self._wrong: set[int] = set()

    def __len__(self) -> int:
        return len(self._wrong)

    def add(self, index: int, error: DataError) -> None:
        """Add the error of the row of this `Row.index`; errors may come in any order."""
        self._wrong.add(index)
        if self._first is None or index < self._first[0]:
            self._first = index, error

    def check(self, *, all_read: bool = True) -> None:
        """Raise DataError if a row is wrong: the error of the first one, and how many more there are.

        With `all_read` false there may be more than are known.
        """
        if self._first is None:
            return
        _, error = self._first
        more = len(self) - 1
        if not more:
            raise error
        at_least = "" if all_read else "at least "
        raise DataError(f"{error} (and {at_least}{counted(more, 'more row')})") from error
