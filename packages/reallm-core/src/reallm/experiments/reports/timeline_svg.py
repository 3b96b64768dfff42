"""Draws a timeline as an SVG file, for a light or a dark screen."""

from __future__ import annotations

from pathlib import Path

from reallm.atomic_files import atomic_write
from reallm.experiments.reports.templates import template
from reallm.experiments.reports.timeline_layout import TimelineDrawing


def timeline_svg(drawing: TimelineDrawing) -> str:
    """A drawing as SVG; see `timeline_layout.draw_timeline`."""
    return template("timeline.svg.j2").render(drawing=drawing)


def write_timeline_svg(path: Path, drawing: TimelineDrawing) -> None:
    """Write a drawing.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(timeline_svg(drawing), encoding="utf-8")
