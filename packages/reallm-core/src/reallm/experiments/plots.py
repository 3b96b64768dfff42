"""Loss curves of a run: as a PNG, and as text for a terminal. Both read `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from reallm.data.files import atomic_write

Curve = list[tuple[int, float]]
"""(step, value) in the order of steps."""

_BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of each dot of a braille character, by row and column."""


def read_curves(metrics_file: Path) -> dict[str, Curve]:
    """The curve of every metric in a `metrics.jsonl`, by name."""
    curves: dict[str, Curve] = {}
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for name, value in record.items():
            if value is not None:
                curves.setdefault(name, []).append((step, value))
    return curves


def save_plot(curves: dict[str, Curve], path: Path) -> None:
    """Draw the losses, those measured while training and those of evaluations, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        if not name.endswith("/loss"):
            continue
        steps, values = zip(*curve, strict=True)
        if name.startswith("eval"):
            axes.plot(steps, values, marker="o", label=name)
        else:
            axes.plot(steps, values, linewidth=0.8, alpha=0.35 if len(curve) > 50 else 1.0, label=name)
            if len(curve) > 50:
                smooth = smoothed(curve, window=len(curve) // 25)
                axes.plot(*zip(*smooth, strict=True), color=axes.lines[-1].get_color(), label=f"{name}, smoothed")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def smoothed(curve: Curve, window: int) -> Curve:
    """The mean of each `window` values, at their last step."""
    window = max(1, window)
    result: Curve = []
    for start in range(0, len(curve), window):
        part = curve[start : start + window]
        result.append((part[-1][0], sum(value for _, value in part) / len(part)))
    return result


def terminal_plot(curve: Curve, width: int = 60, height: int = 10) -> str:
    """A curve in braille dots, with its highest and lowest value and its steps at the axes.

    Args:
        curve: at least one point.
        width: characters across, without the axis.
        height: lines.
    """
    columns = _resample([value for _, value in curve], width * 2)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    cells = [[0] * width for _ in range(height)]
    rows = [round((high - value) / span * (height * 4 - 1)) for value in columns]
    for x, row in enumerate(rows):
        previous = rows[x - 1] if x else row
        for y in range(min(previous, row), max(previous, row) + 1):  # a steep part is a line, not a gap
            cells[y // 4][x // 2] |= _BRAILLE_BITS[y % 4][x % 2]
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"] if height > 1 else [f"{high:.3g}"]
    margin = max(map(len, labels))
    lines = [
        f"{label:>{margin}} │{''.join(chr(0x2800 + bits) for bits in line)}"
        for label, line in zip(labels, cells, strict=True)
    ]
    first, last = str(curve[0][0]), f"step {curve[-1][0]}"
    axis = f"{'':>{margin}} └{'─' * width}"
    return "\n".join([*lines, axis, f"{'':>{margin}}  {first}{last:>{width - len(first)}}"])


def _resample(values: Sequence[float], n: int) -> list[float]:
    """`n` values along the curve: means where it has more points, straight lines between them where it has fewer."""
    if len(values) >= n:
        bounds = [len(values) * i // n for i in range(n + 1)]
        return [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    result = []
    for i in range(n):
        place = i * (len(values) - 1) / (n - 1)
        left = min(int(place), max(0, len(values) - 2))
        right = min(left + 1, len(values) - 1)
        result.append(values[left] + (values[right] - values[left]) * (place - left))
    return result
