"""Lays out charts: the positions of lines, bars and labels as plain numbers, which a template draws.

Positions are in permille of the drawing area, x from the left and y from the top, so that a chart can be stretched to
any width while lines and letters keep their size.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reallm.experiments.reports.metric_guide import MetricGuide
from reallm.experiments.reports.number_format import number, short
from reallm.experiments.runs.metrics import Points, is_evaluation, thinned, trend

MANY = 100
"""Number of points from which a line is drawn faint, with its trend over it."""

DRAWN = 800
"""Maximum number of points drawn of a line: more than a screen can show."""

READINGS = 80
"""Maximum number of points at which a chart shows values under the mouse."""


@dataclass(frozen=True)
class Tick:
    """A label at an axis."""

    position: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    label: str
    color: int
    """Index in the page's palette, from 0."""
    path: str
    """Path as in SVG: `M0 10L5 12...`."""
    faint: str
    """The noisy curve as a path, if `path` is its trend; else empty."""
    dots: str
    """A path with a dot for each point; empty for a curve drawn as a line only."""


@dataclass(frozen=True)
class Reading:
    """A stretch of the x axis, and the values shown while the mouse is over it."""

    left: float
    width: float
    position: float
    """Position of the point whose values are shown."""
    title: str
    values: tuple[tuple[int, str, str], ...]
    """(color, label, value)."""


@dataclass(frozen=True)
class LineChart:
    """Curves over the same axes."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    readings: tuple[Reading, ...]
    guide: MetricGuide | None = None
    """How to read the curves."""


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    height: float
    text: str


@dataclass(frozen=True)
class BarChart:
    """A histogram."""

    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    highest: str


def line_chart(
    title: str,
    curves: Mapping[str, Points],
    *,
    from_zero: bool = False,
    is_noisy: bool = True,
    guide: MetricGuide | None = None,
) -> LineChart:
    """A chart of curves over optimizer steps; curves of evaluations have a dot at each point.

    Args:
        title: text above the chart.
        curves: at least one, each with at least one point.
        from_zero: start the y axis at 0 if no value is negative.
        is_noisy: draw a long curve faint, with its trend over it.
        guide: how to read the curves.
    """
    x_low, x_high = 0.0, float(max(points[-1][0] for points in curves.values()))
    values = [y for points in curves.values() for _, y in points]
    y_low, y_high = min(values), max(values)
    if from_zero and y_low >= 0:
        y_low = 0.0
    y_values = nice_steps(y_low, y_high, 5)
    x_axis, y_axis = _Axis(x_low, x_high), _Axis(y_values[-1], y_values[0])
    lines = tuple(
        _line(label, color, points, x_axis, y_axis, is_noisy) for color, (label, points) in enumerate(curves.items())
    )
    x_values = [value for value in nice_steps(x_low, x_high, 7) if x_low <= value <= x_high]
    return LineChart(
        title,
        lines,
        tuple(Tick(x_axis.position(value), short(value)) for value in x_values),
        tuple(Tick(y_axis.position(value), text) for value, text in zip(y_values, _tick_texts(y_values), strict=True)),
        _readings(curves, x_axis),
        guide,
    )


def bar_chart(edges: Sequence[float], counts: Sequence[int], unit: str) -> BarChart:
    """A histogram.

    Args:
        edges: edges of the bins, one more than there are bins.
        counts: number of values in each bin; at least one bin.
        unit: unit of the edges, such as `tokens`.
    """
    highest = max(counts) or 1
    bars = tuple(
        Bar(round(1000 * count / highest, 1), f"{low:,.0f} to {high:,.0f} {unit}: {count:,}")
        for (low, high), count in zip(pairwise(edges), counts, strict=True)
    )
    stride = math.ceil(len(edges) / 9)
    ticks = tuple(
        Tick(round(1000 * i / len(counts), 1), f"{edge:,.0f}") for i, edge in enumerate(edges) if i % stride == 0
    )
    return BarChart(bars, ticks, f"{highest:,}")


def nice_steps(low: float, high: float, n: int) -> list[float]:
    """About `n` evenly spaced round numbers; the first is at most `low`, the last at least `high`, and they differ.

    `nice_steps(0, 93, 5) == [0, 20, 40, 60, 80, 100]`
    """
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-100:  # practically a single value
        low, high = (low - size / 2, high + size / 2) if size > 1e-100 else (0.0, 1.0)
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _tick_texts(values: Sequence[float]) -> list[str]:
    """Labels with enough digits to distinguish neighbours."""
    step, largest = abs(values[1] - values[0]), max(map(abs, values))
    if largest >= 1000:
        return [short(value) for value in values]
    if largest < 1e-2:
        return ["0" if abs(value) < step / 2 else f"{value:.2g}" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:.{decimals}f}" for value in values]


@dataclass(frozen=True)
class _Axis:
    start: float
    end: float

    def position(self, value: float) -> float:
        """Position of a value, in permille from the start."""
        return round(1000 * (value - self.start) / ((self.end - self.start) or 1), 1) + 0.0  # no -0


def _line(label: str, color: int, points: Points, x_axis: _Axis, y_axis: _Axis, is_noisy: bool) -> Line:
    def path(some: Points) -> str:
        return "M" + "L".join(f"{x_axis.position(x):g} {y_axis.position(y):g}" for x, y in some)

    def dots(some: Points) -> str:
        return "".join(f"M{x_axis.position(x):g} {y_axis.position(y):g}h0" for x, y in some)

    shown = thinned(points, DRAWN)
    if is_evaluation(label) or len(points) == 1:
        return Line(label, color, path(shown), "", dots(shown) if len(shown) <= MANY else "")
    if is_noisy and len(points) > MANY:
        return Line(label, color, path(trend(points)), path(shown), "")
    return Line(label, color, path(shown), "", "")


def _readings(curves: Mapping[str, Points], x_axis: _Axis) -> tuple[Reading, ...]:
    """The steps of evaluations, and as many steps between them as a mouse can distinguish."""
    steps = {label: [x for x, _ in points] for label, points in curves.items()}
    chosen: set[float] = set()
    for xs in sorted(steps.values(), key=len):
        n = min(len(xs), READINGS - len(chosen))
        chosen.update(xs[round(i * (len(xs) - 1) / max(1, n - 1))] for i in range(n))
    xs = sorted(chosen)
    positions = [x_axis.position(x) for x in xs]
    bounds = [0.0, *((a + b) / 2 for a, b in pairwise(positions)), 1000.0]
    return tuple(
        Reading(round(left, 1), round(right - left, 1), position, f"step {x:,.0f}", _values_at(x, curves, steps))
        for x, position, (left, right) in zip(xs, positions, pairwise(bounds), strict=True)
    )


def _values_at(
    x: float, curves: Mapping[str, Points], steps: Mapping[str, Sequence[float]]
) -> tuple[tuple[int, str, str], ...]:
    found = []
    for color, (label, points) in enumerate(curves.items()):
        index = bisect_left(steps[label], x)
        if index < len(points) and points[index][0] == x:
            found.append((color, label, number(points[index][1])))
    return tuple(found)
