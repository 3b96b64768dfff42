"""Draws the curves of rewards or losses of one run, or of several runs to compare, into PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reallm.atomic_files import atomic_write
from reallm.experiments.reports.number_format import short
from reallm.experiments.runs.metrics import Curve, Points, headline, is_evaluation, is_loss, is_reward, thinned, trend
from reallm.printable import printable_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""The colours of Okabe and Ito, which colour-blind people can distinguish."""

MANY = 50
"""Number of points from which a curve is drawn faint, with its trend over it."""

LOSS = "loss (nats per token)"


@dataclass(frozen=True)
class Panel:
    """Curves over the same axes, by their labels in the legend."""

    title: str
    """Name of the metric."""
    curves: Mapping[str, Points]
    marked: bool = False
    """Whether each point has a marker, as in curves of evaluations."""


def save_plot(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw the rewards among `curves`, or the losses if there are none, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    shown = headline(curves)
    for index, name in enumerate(shown):
        _draw(axes, name, curves[name], PALETTE[index % len(PALETTE)], marked=is_evaluation(name))
    _set_up(axes, "optimizer step", _y_label(shown[0]))
    if is_loss(shown[0]):
        axes.set_ylim(bottom=0)
    _save(figure, path)


def save_panels(panels: Sequence[Panel], path: Path, *, x_label: str) -> None:
    """Draw panels below each other into a PNG file. A label has the same colour in all of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 3.4 * len(panels)), dpi=120, layout="constrained")
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        for label, points in panel.curves.items():
            _draw(axes, label, points, PALETTE[labels.index(label) % len(PALETTE)], marked=panel.marked)
        axes.set_title(panel.title, loc="left", fontsize="medium", fontweight="bold")
        _set_up(axes, x_label, _y_label(panel.title))
    _save(figure, path)


def _y_label(metric: str) -> str:
    return "reward" if is_reward(metric) else LOSS


def _draw(axes: Axes, label: str, points: Points, color: str, *, marked: bool) -> None:
    is_faint = len(points) > MANY and not marked
    shown = thinned(points, 2000)
    axes.plot(
        *zip(*shown, strict=True),
        color=color,
        alpha=0.3 if is_faint else 1.0,
        linewidth=0.8 if is_faint else 1.6,
        marker="o" if marked or len(points) == 1 else "",
        markersize=4,
        label=None if is_faint else label,
    )
    if is_faint:
        axes.plot(*zip(*trend(points), strict=True), color=color, linewidth=1.8, label=label)


def _set_up(axes: Axes, x_label: str, y_label: str) -> None:
    axes.xaxis.set_major_formatter(lambda x, _: short(x))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names that others have given, in which `$` begins no formula
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable_line(text.get_text()))
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box is drawn for it
        figure.savefig(temporary, format="png")
