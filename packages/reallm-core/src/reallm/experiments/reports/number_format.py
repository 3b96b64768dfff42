"""Formats numbers for people."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """A measurement with four digits: `1.750`, `12,345`, `2.28e-06`, `1.2e+09`; an int with all its digits; `nan`."""
    size = abs(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if size >= 1e8 or 0 < size < 1e-3:
        return f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}" if value else "0"


def short(value: float) -> str:
    """A count with three digits and a letter: `950`, `12.3K`, `476K`, `1.24B`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as minutes and hours: `0:05`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
