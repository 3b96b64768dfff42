"""The metrics of a run as curves, and what is done to curves before they are drawn."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from reallm.experiments.runs.files import json_lines

Curve = list[tuple[int, float]]
"""(step, value) in the order of steps."""

Points = Sequence[tuple[float, float]]
"""(x, y) in the order of x, which may be steps, tokens or epochs."""

INFINITE = 1e100
"""From here on a value, such as the perplexity of a diverged model, is beyond what can be added up and drawn."""


def read_curves(metrics_file: Path) -> dict[str, Curve]:
    """The curve of every metric in a `metrics.jsonl`, by name; empty if there is no such file.

    NaN and what is or as good as is infinite are left out, as are lines that a killed process did not finish.
    """
    curves: dict[str, Curve] = {}
    for record in json_lines(metrics_file):
        step = record.pop("step", None)
        if not isinstance(step, int):
            continue
        for name, value in record.items():
            if is_number(value) and abs(value) < INFINITE:
                curves.setdefault(name, []).append((step, value))
    return curves


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, which `true` is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_evaluation(name: str) -> bool:
    """Whether a metric was measured on validation data: `eval/loss`, `eval/actor/loss`."""
    return name.startswith("eval/")


def is_loss(name: str) -> bool:
    """Whether a metric is a loss of a train call or of an evaluation: `train/loss`, `eval/actor/loss`."""
    return name.endswith("/loss")


def smoothed(points: Points, window: int) -> list[tuple[float, float]]:
    """The mean of each `window` values, at their last step."""
    window = max(1, window)
    result = []
    for start in range(0, len(points), window):
        part = points[start : start + window]
        result.append((part[-1][0], sum(value for _, value in part) / len(part)))
    return result


def trend(points: Points, n: int = 200) -> list[tuple[float, float]]:
    """A noisy curve without its noise: at `n` places of it, the mean of what lies around, a 25th of all points.

    Near the ends there is less around, so that the trend follows a steep beginning.
    """
    last = len(points) - 1
    sums = [0.0, *accumulate(value for _, value in points)]
    widest = max(1, len(points) // 50)
    result = []
    for i in sorted({round(last * place / (n - 1)) for place in range(n)}):
        reach = min(widest, max(widest // 4, min(i, last - i)))
        start, end = max(0, i - reach), min(last, i + reach) + 1
        result.append((points[i][0], (sums[end] - sums[start]) / (end - start)))
    return result


def thinned(points: Points, n: int) -> Points:
    """At most about `n` of the points, the lowest and highest of each stretch among them, so that no spike is lost."""
    if len(points) <= n:
        return points
    size = math.ceil(2 * len(points) / n)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def tokens_trained(curves: Mapping[str, Curve]) -> Curve:
    """Tokens that went through the (first) train call up to each step; empty if the run did not count them."""
    for name, curve in curves.items():
        if name.endswith("/tokens") and not is_evaluation(name):
            sums = accumulate(value for _, value in curve)
            return [(step, total) for (step, _), total in zip(curve, sums, strict=True)]
    return []


def along(progress: Curve) -> Callable[[int], float]:
    """What `progress`, such as tokens by step, has reached after a step: 0 before its first, its last beyond it."""
    steps = [step for step, _ in progress]

    def reached(step: int) -> float:
        place = bisect_right(steps, step)
        return progress[place - 1][1] if place else 0.0

    return reached
