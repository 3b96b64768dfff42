"""Tables of numbers for the terminal, and the sizes and times in them."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table
from rich.text import Text

from reallm.printable import printable_line

UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def numbers_table(first: str, *titles: str, left: Collection[str] = ()) -> Table:
    """An empty table without lines: a column of names, then columns aligned right, apart from those named in `left`."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    return table


def plain(text: str, style: str = "") -> Text:
    """Text that others have written, such as names of runs, with escapes for what would drive the terminal."""
    return Text(printable_line(text), style=style)


def size(n_bytes: float) -> str:
    """Format a size with three digits: `950 B`, `12.3 KB`, `1.24 GB`, where 1 KB is 1,000 bytes; `-` for none."""
    if not n_bytes:
        return "-"
    unit = 0
    while n_bytes >= 999.5 and unit < len(UNITS) - 1:
        n_bytes, unit = n_bytes / 1000, unit + 1
    return f"{n_bytes:.3g} {UNITS[unit]}"


def duration(seconds: float) -> str:
    """Format a time with three digits: `85.3 µs`, `1.24 s`."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"
