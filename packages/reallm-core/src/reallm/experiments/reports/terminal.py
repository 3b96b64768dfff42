"""Draws curves in a terminal with braille characters, eight dots each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

from reallm.experiments.runs.metrics import Points

COLORS = ("cyan", "yellow", "magenta", "green", "blue", "red")
"""Colours of the curves in a plot, used in turn. Letters distinguish the curves as well."""

_BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of each dot of a braille character, by row and column."""


@dataclass(frozen=True)
class TextCurve:
    """A curve of a plot, and the letter written on it at several points; empty if it is the only curve."""

    points: Points
    letter: str = ""
    style: str = ""


def terminal_plot(curve: Points, width: int = 60, height: int = 10) -> str:
    """Draw a curve, with its highest and lowest value and its steps at the axes.

    Args:
        curve: at least one point.
        width: characters across, without the axis.
        height: lines, without the axis.
    """
    labels = (str(curve[0][0]), f"step {curve[-1][0]}")
    return overlay([TextCurve(curve)], labels, width=width, height=height).plain


def overlay(curves: Sequence[TextCurve], x_labels: tuple[str, str], *, width: int = 60, height: int = 10) -> Text:
    """Draw several curves over the same axes, the first on top.

    Args:
        curves: at least one, each with at least one point.
        x_labels: labels of the left and the right end of the x axis.
        width: characters across, without the axis.
        height: lines, without the axis.
    """
    left = min(curve.points[0][0] for curve in curves)
    right = max(curve.points[-1][0] for curve in curves)
    columns = [_columns(curve.points, left, right, width * 2) for curve in curves]
    low = min(min(column.values()) for column in columns)
    high = max(max(column.values()) for column in columns)
    cells: dict[tuple[int, int], tuple[int, str]] = {}  # (line, character) -> bits, style
    traces = [_trace(column, low, high, height) for column in columns]
    for curve, trace in reversed(list(zip(curves, traces, strict=True))):
        for cell, bits in trace.items():
            cells[cell] = bits | cells.get(cell, (0, ""))[0], curve.style
    letters = _letters(curves, traces, width)

    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"] if height > 1 else [f"{high:.3g}"]
    margin = max(map(len, labels))
    text = Text()
    for y, label in enumerate(labels):
        text.append(f"{label:>{margin}} │")
        for x in range(width):
            bits, style = cells.get((y, x), (0, ""))
            letter, letter_style = letters.get((y, x), ("", ""))
            text.append(letter or chr(0x2800 + bits), letter_style if letter else style)
        text.append("\n")
    first, last = x_labels
    text.append(f"{'':>{margin}} └{'─' * width}\n{'':>{margin}}  {first}{last:>{max(0, width - len(first))}}")
    return text


def _columns(points: Points, left: float, right: float, n: int) -> dict[int, float]:
    """The value of a curve in each of the `n` columns it passes through.

    It is the mean of the points in the column; in a column without points it is interpolated linearly.
    """
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        column = min(n - 1, int((x - left) / (right - left) * n)) if right > left else 0
        total, count = sums.get(column, (0.0, 0))
        sums[column] = total + y, count + 1
    found = {column: total / count for column, (total, count) in sorted(sums.items())}
    known = list(found)
    for a, b in pairwise(known):
        for column in range(a + 1, b):
            found[column] = found[a] + (found[b] - found[a]) * (column - a) / (b - a)
    return dict(sorted(found.items()))


def _trace(column: dict[int, float], low: float, high: float, height: int) -> dict[tuple[int, int], int]:
    """Braille bits by line and character."""
    bits: dict[tuple[int, int], int] = {}
    previous = None
    for x, value in column.items():
        row = round((high - value) / ((high - low) or 1.0) * (height * 4 - 1))
        start = row if previous is None else previous
        for y in range(min(start, row), max(start, row) + 1):  # a steep part is a line, not a gap
            bits[y // 4, x // 2] = bits.get((y // 4, x // 2), 0) | _BRAILLE_BITS[y % 4][x % 2]
        previous = row
    return bits


def _letters(
    curves: Sequence[TextCurve], traces: Sequence[dict[tuple[int, int], int]], width: int
) -> dict[tuple[int, int], tuple[str, str]]:
    """(line, character) -> letter and style: each curve has its letter at its end and at every sixth of the width.

    The letters of different curves are in different columns, so that overlapping curves show all their letters.
    """
    letters: dict[tuple[int, int], tuple[str, str]] = {}
    period = max(len(curves) + 1, width // 6)
    for index, (curve, trace) in enumerate(zip(curves, traces, strict=True)):
        if not curve.letter:
            continue
        by_column: dict[int, list[int]] = {}
        for y, x in sorted(trace):
            by_column.setdefault(x, []).append(y)
        cells = {x: (ys[len(ys) // 2], x) for x, ys in by_column.items()}
        end = max(cells)
        at_end = next((x for x in range(end, -1, -1) if x in cells and cells[x] not in letters), end)
        for x in (at_end, *range(period * (2 * index + 1) // (2 * len(curves)), end - period // 2, period)):
            if x in cells:
                letters.setdefault(cells[x], (curve.letter, f"bold {curve.style}".strip()))
    return letters
