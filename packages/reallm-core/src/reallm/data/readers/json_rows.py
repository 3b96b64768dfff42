"""Reads rows of JSON: a list, an object that holds one, or objects one after the other, a line each or on several.

The extension says what is expected, and what is in the file decides: a `.jsonl` file is read line by line unless it
begins with a list or with an object on several lines, and a `.json` file as a whole unless each line is an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from reallm.data.readers.record import Origin, Records
from reallm.data.readers.text_lines import MAX_UNPACKED, is_compressed, text_lines
from reallm.errors import DataError, quoted
from reallm.foreign_files import NOT_JSON, check_depth, json_or_none, parse_json, reason_of

_BETWEEN = re.compile(r"[\s,]*")
_LISTS_OF_A_ROW = {"chosen", "completion", "conversation", "conversations", "functions", "messages", "prompt"}
_LISTS_OF_A_ROW |= {"rejected", "tools"}
_WEB_PAGE = re.compile(r"\s*<(!doctype\s+html|html|head)\b", re.IGNORECASE)
_TRAILING_COMMA = re.compile(r",\s*[\]}]")
_DECODER = json.JSONDecoder()
_MAX_BLANK_LINES = 1 << 16

_Line = tuple[int, str]  # number and text


def read_jsonl(path: Path, origin: Origin) -> Records:
    """Rows of a file that should have an object on each line."""
    with closing(text_lines(path, origin)) as lines:
        start, first = _up_to_text(lines, origin)
        more, second = _up_to_text(lines, origin) if _is_cut(first) else ([], "")
        is_whole = first.lstrip().startswith("[") or (second and not second.lstrip().startswith("{"))
        found = chain(start, more, lines)
        yield from _whole(_bounded(found, path, origin), origin) if is_whole else _lines(found, origin)


def read_json(path: Path, origin: Origin) -> Records:
    """Rows of a file that should be a list of objects."""
    longest = MAX_UNPACKED if is_compressed(path) else None  # all rows may be on one line
    with closing(text_lines(path, origin, longest=longest)) as lines:
        start, first = _up_to_text(lines, origin)
        more, second = _up_to_text(lines, origin)
        found, is_lines = chain(start, more, lines), second and _is_object(first)
        yield from _lines(found, origin) if is_lines else _whole(_bounded(found, path, origin), origin)


def _up_to_text(lines: Iterator[_Line], origin: Origin) -> tuple[list[_Line], str]:
    """The next lines, of which only the last is not blank, and its text; this is empty at the end of the file."""
    found: list[_Line] = []
    for line in lines:
        found.append(line)
        if line[1].strip():
            return found, line[1]
        if len(found) > _MAX_BLANK_LINES:
            raise DataError(f"{origin.place}:{line[0]}: more than {_MAX_BLANK_LINES:,} blank lines; remove them")
    return found, ""


def _bounded(lines: Iterable[_Line], path: Path, origin: Origin) -> Iterator[_Line]:
    """The lines of a file that is read as a whole, of which one that is compressed may not have too many."""
    n_characters = 0
    for line in lines:
        n_characters += len(line[1])
        if n_characters > MAX_UNPACKED and is_compressed(path):
            raise DataError(
                f"{origin.place}:{line[0]}: unpacks to more than {MAX_UNPACKED >> 20} MiB, too much to be read as a "
                "whole; unpack it first, or write one object a line (.jsonl)"
            )
        yield line


def _is_cut(text: str) -> bool:
    """Whether the line ends within an object."""
    try:
        parse_json(text)
    except NOT_JSON as error:
        is_at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip())
        return is_at_end and text.lstrip().startswith("{")
    return False


def _is_object(text: str) -> bool:
    return isinstance(json_or_none(text), Mapping)


def _lines(lines: Iterable[_Line], origin: Origin) -> Records:
    """The rows of lines, each with an object."""
    for number, line in lines:
        text = line.strip()
        if not text:
            continue
        try:
            value = parse_json(text)
        except NOT_JSON as error:
            yield origin.wrong_line(_not_json(f"{origin.place}:{number}", error, text, is_line=True))
        else:
            yield origin.at_line(number, value)


def _whole(lines: Iterable[_Line], origin: Origin) -> Records:
    """The rows of a text that is a list, an object with one list of rows, or several objects one after the other."""
    text = "".join(text for _, text in lines)
    try:
        values = _values(text)
    except NOT_JSON as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise _not_json(f"{origin.place}:{line}", error, text) from error
    if len(values) == 1 and isinstance(values[0][1], list):
        yield from _elements(text, values[0][0] + 1, len(values[0][1]), origin)
    elif len(values) == 1 and isinstance(values[0][1], Mapping) and (name := _name_of_rows(values[0][1], origin)):
        yield from _elements(text, _start_of(text, values[0][0], name) + 1, len(values[0][1][name]), origin)
    else:
        yield from _numbered(text, values, origin)


def _values(text: str) -> list[tuple[int, Any]]:
    """The value of a JSON text and where it begins, or those of several objects, with or without commas."""
    start = _after_space(text, 0)
    values: list[tuple[int, Any]] = []
    while start < len(text):
        value, end = _DECODER.raw_decode(text, start)
        check_depth(value)
        values.append((start, value))
        following = _BETWEEN.match(text, end)
        assert following is not None
        if following.end() < len(text) and not (isinstance(value, Mapping) and text[following.end()] == "{"):
            raise json.JSONDecodeError("Extra data", text, _after_space(text, end))
        start = following.end()
    return values


def _name_of_rows(whole: Mapping[str, Any], origin: Origin) -> str | None:
    """The key with the rows, if the object is not a row: `{"version": 2, "data": [{...}, ...]}`."""
    names = [
        name
        for name, value in whole.items()
        if isinstance(value, list) and name not in _LISTS_OF_A_ROW and all(isinstance(item, Mapping) for item in value)
    ]
    if len(names) > 1:
        raise DataError(f"{origin.place}: holds the lists {quoted(names, 8)}; wanted one list of rows: [{{...}}, ...]")
    return names[0] if names else None


def _start_of(text: str, at: int, name: str) -> int:
    """The index in `text` at which the value of `name` begins, in the object that begins at `at`."""
    start = at
    at = _after_space(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, _after_space(text, at) + 1)  # after the colon
        if key == name:
            start = at  # of a key that is there twice, the last value counts
        _, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, at)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return start


def _elements(text: str, at: int, n: int, origin: Origin) -> Records:
    """The `n` elements of a list whose first element begins at or after `at`, each with the line that it begins on."""

    # A second pass finds the line of each element. The text is known to be valid, so it need not check separators.
    def found() -> Iterator[tuple[int, Any]]:
        end = at
        for _ in range(n):
            between = _BETWEEN.match(text, end)
            assert between is not None
            value, end = _DECODER.raw_decode(text, between.end())
            yield between.end(), value

    yield from _numbered(text, found(), origin)


def _numbered(text: str, values: Iterable[tuple[int, Any]], origin: Origin) -> Records:
    """Records of values that begin at these indices of `text`."""
    line, counted, nth = 1, 0, 0
    for start, value in values:
        n_newlines = text.count("\n", counted, start)
        line, counted, nth = line + n_newlines, start, 1 if n_newlines else nth + 1
        yield origin.at_line(line, value, nth)


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _not_json(place: str, error: Exception, text: str, *, is_line: bool = False) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        problem = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        return DataError(f"{place}: invalid JSON: {problem}{_hint(error, text, is_line=is_line)}")
    return DataError(f"{place}: invalid JSON: {reason_of(error)}")


def _hint(error: json.JSONDecodeError, text: str, *, is_line: bool) -> str:
    if _WEB_PAGE.match(text):
        return "; this is a web page, not data: download the file itself"
    comma = _TRAILING_COMMA.match(text, max(0, text.rfind(",", 0, error.pos + 1)))
    if (comma and comma.end() > error.pos) or (is_line and text[error.pos :] == ","):
        return "; leave out the trailing comma"
    return "; the line ends within a value" if is_line and error.pos == len(text) else ""
