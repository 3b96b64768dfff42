"""Draws a dataflow graph as an SVG file, for a light or a dark screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reallm.algorithms.graph import Graph
from reallm.atomic_files import atomic_write
from reallm.config.args import CallArgs
from reallm.experiments.reports.graph_layout import draw
from reallm.experiments.reports.templates import template


def graph_svg(title: str, graph: Graph, call_args: Mapping[str, CallArgs]) -> str:
    """The drawing of a graph as SVG; see `graph_layout.draw`."""
    return template("graph.svg.j2").render(drawing=draw(title, graph, call_args))


def write_graph_svg(path: Path, title: str, graph: Graph, call_args: Mapping[str, CallArgs]) -> None:
    """Write the drawing of a graph.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(graph_svg(title, graph, call_args), encoding="utf-8")
