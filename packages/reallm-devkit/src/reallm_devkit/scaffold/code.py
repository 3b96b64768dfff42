"""Pieces of Python source, laid out as ruff's formatter would: on one line if that is short enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WIDTH = 88
"""Ruff's own line length, for an author without settings."""

INDENT = 4


def enclosed(opening: str, items: Sequence[str], closing: str, column: int, *, before: int = 0) -> str:
    """`opening item, item closing` on one line, or with a line for each item where that is too long.

    Args:
        opening: such as `Key(`.
        items: what stands between, each laid out for `column + INDENT`; a comment is an item that begins with `#`.
        closing: such as `)`; `,)` of a tuple with one item.
        column: of the line that it stands on.
        before: characters that this line has before it, beyond `column`; behind it, a comma follows.
    """
    line = f"{opening}{', '.join(items)}{closing}"
    plain = not any(item.startswith("#") or "\n" in item for item in items)
    if not items or (plain and column + before + len(line) + len(",") <= WIDTH):
        return line
    pad = " " * (column + INDENT)
    lines = [f"{pad}{item}" if item.startswith("#") else f"{pad}{item}," for item in items]
    return "\n".join([opening, *lines, f"{' ' * column}{closing.lstrip(',')}"])


def call(name: str, arguments: Sequence[str], column: int, *, before: int = 0) -> str:
    """`name(argument, argument)`; see `enclosed`."""
    return enclosed(f"{name}(", arguments, ")", column, before=before)


def imported(module: str, names: Iterable[str]) -> str:
    """`from module import name, name`, or nothing; in the order of isort: constants, classes, functions."""
    ordered = sorted(set(names), key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))
    if not ordered:
        return ""
    line = f"from {module} import {', '.join(ordered)}"
    return line if fits(line) else enclosed(f"from {module} import (", ordered, ")", 0, before=WIDTH)


def fits(line: str) -> bool:
    """Whether a line is short enough."""
    return len(line) <= WIDTH


def strings(values: Sequence[str]) -> str:
    """A tuple of strings, or the one string."""
    quoted = [text(value) for value in values]
    return quoted[0] if len(quoted) == 1 else f"({', '.join(quoted)})"


def text(value: object) -> str:
    """A value as ruff would write it: strings in double quotes."""
    if isinstance(value, str):
        return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))
    return repr(value)
