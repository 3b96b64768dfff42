"""Pieces of Python source, formatted as by ruff: on one line if it is short enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WIDTH = 88
"""Ruff's default line length."""

INDENT = 4


def bracketed(opening: str, items: Sequence[str], closing: str, column: int, *, before: int = 0) -> str:
    """`opening item, item closing` on one line, or with a line for each item if it is too long.

    Args:
        opening: such as `Key(`.
        items: the items, formatted for the column `column + INDENT`; an item that begins with `#` is a comment.
        closing: such as `)`; `,)` for a tuple with one item.
        column: the indentation of the line.
        before: the number of characters between the indentation and `opening`; a comma is assumed to follow.
    """
    line = f"{opening}{', '.join(items)}{closing}"
    plain = not any(item.startswith("#") or "\n" in item for item in items)
    if not items or (plain and column + before + len(line) + len(",") <= WIDTH):
        return line
    pad = " " * (column + INDENT)
    lines = [f"{pad}{item}" if item.startswith("#") else f"{pad}{item}," for item in items]
    return "\n".join([opening, *lines, f"{' ' * column}{closing.lstrip(',')}"])


def call(name: str, arguments: Sequence[str], column: int, *, before: int = 0) -> str:
    """`name(argument, argument)`; see `bracketed`."""
    return bracketed(f"{name}(", arguments, ")", column, before=before)


def import_line(module: str, names: Iterable[str]) -> str:
    """`from module import name, name` in the order of isort: constants, classes, functions; empty without names."""
    ordered = sorted(set(names), key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))
    if not ordered:
        return ""
    line = f"from {module} import {', '.join(ordered)}"
    return line if fits(line) else bracketed(f"from {module} import (", ordered, ")", 0, before=WIDTH)


def fits(line: str) -> bool:
    """Whether a line is short enough."""
    return len(line) <= WIDTH


def quoted_tuple(values: Sequence[str]) -> str:
    """The source of a tuple of strings, or of a single string."""
    quoted = [literal(value) for value in values]
    return quoted[0] if len(quoted) == 1 else f"({', '.join(quoted)})"


def literal(value: object) -> str:
    """The source of a value as ruff formats it: strings in double quotes."""
    if isinstance(value, str):
        return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))
    return repr(value)
