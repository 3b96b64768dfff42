"""The metrics of a run as curves, and smoothing and thinning of curves before they are drawn."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from reallm.experiments.runs.files import json_lines

Curve = list[tuple[int, float]]
"""(step, value) in the order of steps."""

Points = Sequence[tuple[float, float]]
"""(x, y) in the order of x, which may be steps, tokens or epochs."""

INFINITE = 1e100
"""Values from this one on, such as the perplexity of a diverged model, are too large to be summed and drawn."""


def read_curves(metrics_file: Path) -> dict[str, Curve]:
    """The curve of every metric in a `metrics.jsonl`, by name; empty if the file does not exist.

    NaN and values from `INFINITE` on are left out, as are lines that a killed process cut off.
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
    """Whether a JSON value is a number; `true` is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_evaluation(name: str) -> bool:
    """Whether a metric was measured on validation data: `eval/loss`, `eval/actor/loss`."""
    return name.startswith("eval/")


def is_loss(name: str) -> bool:
    """Whether a metric is a loss of a train call or of an evaluation: `train/loss`, `eval/actor/loss`."""
    return name.endswith("/loss")


def is_reward(name: str) -> bool:
    """Whether a metric is the total reward of answers: `train/reward`, `actor_train/reward`, `eval/reward`."""
    return name.endswith("/reward")


def headline(names: Iterable[str]) -> list[str]:
    """The metrics that tell how well a run does: rewards, or losses if there are none; those of training first."""
    known = sorted(names, key=is_evaluation)
    return list(filter(is_reward, known)) or list(filter(is_loss, known))


def smoothed(points: Points, window: int) -> list[tuple[float, float]]:
    """The mean of each `window` values, at their last step."""
    window = max(1, window)
    result = []
    for start in range(0, len(points), window):
        chunk = points[start : start + window]
        result.append((chunk[-1][0], sum(value for _, value in chunk) / len(chunk)))
    return result


def trend(points: Points, n: int = 200) -> list[tuple[float, float]]:
    """A moving average of a noisy curve, at `n` of its points, over a window of a 25th of all points.

    The window is smaller near the ends, so that the trend follows a steep beginning.
    """
    last = len(points) - 1
    sums = [0.0, *accumulate(value for _, value in points)]
    widest = max(1, len(points) // 50)
    result = []
    for i in sorted({round(last * number / (n - 1)) for number in range(n)}):
        reach = min(widest, max(widest // 4, min(i, last - i)))
        start, end = max(0, i - reach), min(last, i + reach) + 1
        result.append((points[i][0], (sums[end] - sums[start]) / (end - start)))
    return result


def thinned(points: Points, n: int) -> Points:
    """At most about `n` of the points: the lowest and highest of each stretch, so that no spike is lost."""
    if len(points) <= n:
        return points
    size = math.ceil(2 * len(points) / n)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return kept


def tokens_trained(curves: Mapping[str, Curve]) -> Curve:
    """Tokens that the (first) train call has processed up to each step; empty if the run did not log them."""
    for name, curve in curves.items():
        if name.endswith("/tokens") and not is_evaluation(name):
            sums = accumulate(value for _, value in curve)
            return [(step, total) for (step, _), total in zip(curve, sums, strict=True)]
    return []


def along(progress: Curve) -> Callable[[int], float]:
    """A function from a step to the value of `progress` after it, such as tokens: 0 before its first point."""
    steps = [step for step, _ in progress]

    def reached(step: int) -> float:
        index = bisect_right(steps, step)
        return progress[index - 1][1] if index else 0.0

    return reached
