"""What readers give: values with their locations."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from reallm.errors import DataError


class Record(NamedTuple):
    """A value that was read, its place for messages (`data/a.jsonl:12`), and its position for ids (`a.jsonl:12`).

    `error` says why a line could not be read, if those after it can be.
    """

    value: Any
    place: str
    position: str
    error: DataError | None = None


Records: TypeAlias = Generator[Record, None, None]


@dataclass(frozen=True)
class Origin:
    """Where the records of a reader come from.

    Args:
        place: path of a file as the user gave it, or name of a function, for messages.
        name: what positions begin with; different for all files that are read together.
    """

    place: str
    name: str

    def at_line(self, line: int, value: Any, nth: int = 1) -> Record:
        """A record of a text file; `nth` numbers those that begin on the same line: `12`, `12#2`, ..."""
        number = str(line) if nth == 1 else f"{line}#{nth}"
        return Record(value, f"{self.place}:{number}", f"{self.name}:{number}")

    def at_row(self, number: int, value: Any) -> Record:
        """A record of a table or a function."""
        return Record(value, f"{self.place}, row {number}", f"{self.name}:{number}")

    def wrong_line(self, error: DataError) -> Record:
        """A record for a line that could not be read."""
        return Record(None, self.place, self.name, error)
